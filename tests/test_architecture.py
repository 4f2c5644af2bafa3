"""Imports point down, in no circle; Ray and torch stay where they belong; quick commands load neither."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("cluster", "jobs", "robustlib")

# From the top down. What stands on one line imports nothing of each other; every line may import those below it.
LAYERS = """
cli
cluster.commands
cluster.device cluster.doctor cluster.remote cluster.serving
cluster.driver
cluster.child_workers cluster.early_child cluster.ray_workers
cluster.ray_connection
cluster.child
cluster.child_process cluster.this_machine
cluster.study_slots cluster.worker_isolation cluster.worker
cluster.gpu_probe cluster.ray_sessions cluster.workers
cluster.worker_ends
cluster.bad_gpus
cluster.last_words cluster.machine_locks cluster.messages cluster.process_identity cluster.ray_failures cluster.slots
jobs.commands
jobs.serving
jobs.packages jobs.paper jobs.report jobs.trackers jobs.verification
jobs.results jobs.submission jobs.upkeep
jobs.queue jobs.reasons jobs.running
jobs.store jobs.study
jobs.specs
jobs.text jobs.web
jobs.errors jobs.statistics
robustlib.audit robustlib.export
robustlib.evaluation
robustlib.explanations robustlib.monitoring robustlib.training
robustlib.checks
robustlib.attacks robustlib.defences
robustlib.bounds robustlib.input_checks robustlib.models robustlib.outcome
robustlib.inference
robustlib.hyperplane robustlib.losses
robustlib.normal_streams robustlib.norms
robustlib.datasets robustlib.model_calls robustlib.rng
robustlib.flop_count robustlib.hashing robustlib.memory robustlib.metrics robustlib.normalisations robustlib.settings
robustlib.arguments
robustlib.addresses robustlib.durable_files robustlib.gpu_failures robustlib.names robustlib.packages
robustlib.regular_files
robustlib.number_text
"""
LAYER = {place: i for i, line in enumerate(LAYERS.split("\n")) for place in line.split()}
MOST_IN_A_FOLDER = 16  # modules of a folder of jobs/

# The folders and files of jobs/ that may load torch: what a worker does, and what a study is checked against.
TORCH = (
    "jobs/running",
    "jobs/packages/attacked_images.py",
    "jobs/packages/judged_program.py",
    "jobs/packages/make.py",
    "jobs/packages/monitored.py",
    "jobs/serving/smoothed.py",
    "jobs/submission/calibration.py",
    "jobs/submission/cost.py",
    "jobs/submission/on_this_machine.py",
    "jobs/submission/validation",
    "jobs/verification/replay.py",
)


def sources(root: Path = ROOT) -> dict[str, Path]:
    """The project's modules by the names that they have here, without `robustq.` in front."""
    paths = [root / "cli.py", *(path for top in OURS for path in (root / top).rglob("*.py"))]
    names = (path.relative_to(root).with_suffix("").parts for path in paths)
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in zip(names, paths, strict=True)}


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file may import, at any depth of its code, without `robustq.` in front."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("robustq.") for name in found}


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Who imports whom: a package counts only where a name of its own `__init__` is meant."""
    known = sources(root)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        wanted = imports(path)
        packages = {other.rpartition(".")[0] for other in wanted if other in known}
        found[name] = {other for other in wanted if other in known and other != name and other not in packages}
    return found


def circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """What can be reached from itself, a list of names for each circle: Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                yield from visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            found = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(found) > 1:
                yield sorted(found)

    for name in sorted(edges):
        if name not in index:
            yield from visit(name)


def place_of(name: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    parts = name.split(".")
    return next((place for i in range(len(parts), 0, -1) if (place := ".".join(parts[:i])) in LAYER), name)


def folder_of(name: str, known: dict[str, Path]) -> str:
    """The package that a module lies in, itself where it is one."""
    return name if known[name].name == "__init__.py" else name.rpartition(".")[0]


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports of another place on the same layer or above; the version numbers in `robustlib` itself are everybody's."""
    return sorted(
        f"{name} imports {other}"
        for name, others in edges.items()
        for other in others
        if place_of(name) != place_of(other) and place_of(other) in LAYER
        if LAYER[place_of(other)] <= LAYER[place_of(name)]
    )


def test_every_module_has_a_layer():
    packages = {"cluster", "jobs", "robustlib"}
    assert {name for name in sources() if name not in packages and place_of(name) not in LAYER} == set()


def test_imports_point_down():
    assert upward({name: others for name, others in graph().items() if place_of(name) in LAYER}) == []


def test_no_module_and_no_folder_stands_in_a_circle():
    edges, known = graph(), sources()
    assert list(circles(edges)) == []
    folders: dict[str, set[str]] = {}
    for name, others in edges.items():
        mine = folder_of(name, known)
        folders.setdefault(mine, set()).update({folder_of(other, known) for other in others} - {mine})
    tops = {"", *OURS}  # leaves such as jobs/specs.py lie beside the folders that import them
    assert list(circles({k: v - tops for k, v in folders.items() if k not in tops})) == []


def planted(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"cli.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_planted_circle_is_found(tmp_path: Path):
    """Also through an import inside a function, and through a third module."""
    files = {
        "jobs/queue/one.py": "from robustq.jobs.queue import two",
        "jobs/queue/two.py": "def late():\n    from robustq.jobs.queue.three import X",
        "jobs/queue/three.py": "import robustq.jobs.queue.one\nX = 1",
        "jobs/queue/four.py": "from robustq.jobs.queue import one",
    }
    found = list(circles(graph(planted(tmp_path, files))))
    assert found == [["jobs.queue.one", "jobs.queue.three", "jobs.queue.two"]]


def test_a_planted_import_upward_is_found(tmp_path: Path):
    files = {
        "jobs/store/one.py": "def late():\n    from robustq.jobs.results.rows import X",
        "jobs/results/rows.py": "X = 1",
        "jobs/study/two.py": "from robustq.jobs.store import one",
        "robustlib/norms.py": "import robustlib.attacks.pgd",
        "robustlib/attacks/pgd.py": "from robustlib import norms",
    }
    assert upward(graph(planted(tmp_path, files))) == [
        "jobs.store.one imports jobs.results.rows",
        "jobs.study.two imports jobs.store.one",
        "robustlib.norms imports robustlib.attacks.pgd",
    ]


def test_only_cluster_knows_ray_and_few_know_torch_above_the_kernels():
    for name, path in sources().items():
        tops = {other.partition(".")[0] for other in imports(path)}
        where = str(path.relative_to(ROOT))
        assert "ray" not in tops or name.startswith("cluster"), where
        assert "torch" not in tops or name.startswith(("cluster", "robustlib")) or where.startswith(TORCH), where


@pytest.mark.slow
def test_names_are_ours():
    """Nobody imports the folders by the names that they have in the repository: those are anybody's."""
    files = [path for top in (*OURS, "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    for path in [*files, *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {name.partition(".")[0] for name in named} & {"cli", "cluster", "jobs"}, path


def test_no_file_imports_its_own_package():
    """A registry in `__init__` may be read from above, not by the files that it lists."""
    for name, path in sources().items():
        if path.name == "__init__.py" or len(path.relative_to(ROOT).parts) < 2:
            continue
        package = name.rpartition(".")[0]
        names = {other for other in imports(path) if other.rpartition(".")[0] == package}
        files = {p.stem for p in path.parent.glob("*.py")} | {p.name for p in path.parent.iterdir()}
        assert {other.rpartition(".")[2] for other in names} <= files | ALLOWED.get(name, set()), path


# The training loop looks its objective up by name, as nothing else in robustlib does.
ALLOWED = {"robustlib.training.loop": {"OBJECTIVES"}}


def test_no_folder_of_jobs_is_crowded():
    for folder in {path.parent for name, path in sources().items() if name.startswith("jobs")}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_IN_A_FOLDER, folder


def test_registries_alone_hold_code_in_an_init():
    """Whoever imports a module runs the `__init__` of every folder above it: those of stages stay empty."""
    for name, path in sources().items():
        if path.name == "__init__.py" and not name.startswith("robustlib"):
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, ast.Expr) for node in body), path


@pytest.mark.slow
@pytest.mark.parametrize("command", [["status"], ["results"], ["results", "--json"], ["--help"]], ids=" ".join)
def test_quick_commands_load_neither_torch_nor_ray(command: list[str], tmp_path: Path):
    make = "from robustq.jobs.store.connection import open_store\n"
    make += f"open_store({str(tmp_path / 'r.db')!r}, create=True, write=True)"
    subprocess.run([sys.executable, "-c", make], check=True)
    look = (
        "import sys\nfrom robustq import cli\n"
        f"try: cli.main({['--store', str(tmp_path / 'r.db'), *command]!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "loaded = {'torch', 'ray', 'torchvision', 'sklearn', 'matplotlib', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", look], check=True, capture_output=True)
