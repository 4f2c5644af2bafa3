"""What a user's file imports from beside it: its own modules, whatever else goes by their names, and nobody else's."""

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import robustlib.models
import robustq.cluster.slots
import robustq.jobs.errors
from robustlib.hashing import code_hash, local_modules
from robustlib.models.loading import load_factory

# Names of robustq's own modules, and one that anybody may use.
MODEL = """
import torch
import cluster
import utils
from cluster import VALUE
from jobs.inner import INNER, up

class Net(torch.nn.Module):
    def forward(self, x):
        import cli
        from cluster import VALUE as again
        from jobs import lazy
        import utils
        assert cluster.VALUE == VALUE == again
        return cluster.VALUE, up(), INNER, cli.VALUE, lazy.VALUE, utils.VALUE

def make():
    import robustlib
    return Net(), robustlib.VALUE
"""
FILES = {
    "cluster.py": "VALUE = 'cluster of {me}'",
    "jobs/__init__.py": "VALUE = 'jobs of {me}'",
    "jobs/inner.py": "from . import VALUE\nfrom .deep.leaf import LEAF as INNER\ndef up():\n    from . import other\n    return other.VALUE",
    "jobs/other.py": "from . import VALUE as OF\nVALUE = 'other, ' + OF",
    "jobs/lazy.py": "from jobs import VALUE as OF\nimport cluster\nVALUE = 'lazy, ' + OF + ', ' + cluster.VALUE",
    "jobs/deep/leaf.py": "from ..other import VALUE as LEAF",
    "cli.py": "VALUE = 'cli of {me}'",
    "robustlib.py": "VALUE = 'robustlib of {me}'",
    "utils.py": "VALUE = 'utils of {me}'",
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


def user(folder: Path, me: str) -> Path:
    return written(folder, {name: text.format(me=me) for name, text in FILES.items()} | {"m.py": MODEL})


def told(me: str) -> tuple[str, ...]:
    other = f"other, jobs of {me}"
    return f"cluster of {me}", other, other, f"cli of {me}", f"lazy, jobs of {me}, cluster of {me}", f"utils of {me}"


def ours_work() -> None:
    for ours in (robustq, robustq.jobs, robustlib):
        assert sys.modules[ours.__name__] is ours
    assert importlib.import_module("robustq.jobs.errors") is robustq.jobs.errors
    assert robustq.cluster.slots.Slots(1, 0, 1).device == "cpu"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", [*sys.path])


def test_a_model_gets_its_own_modules_and_robustq_keeps_its_own(tmp_path: Path):
    net, value = load_factory(f"{user(tmp_path, 'me')}/m.py:make")()
    ours_work()
    assert value == "robustlib of me"
    assert net(None) == told("me")
    ours_work()


def test_two_folders_in_one_process_do_not_meet(tmp_path: Path):
    """As for a surrogate and its target: both are asked in turn, and import what they need when they need it."""
    one, two = (load_factory(f"{user(tmp_path / me, me)}/m.py:make") for me in ("one", "two"))
    for _ in range(2):
        assert one()[0](None) == told("one")
        assert two()[0](None) == told("two")
        ours_work()


def test_threads_may_import_at_the_same_time(tmp_path: Path):
    nets = {me: load_factory(f"{user(tmp_path / me, me)}/m.py:make")()[0] for me in ("one", "two")}
    found: dict[str, Any] = {}
    threads = [threading.Thread(target=lambda me=me: found.update({me: nets[me](None)})) for me in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {me: told(me) for me in nets}
    ours_work()


def test_an_edited_module_is_read_again(tmp_path: Path):
    place = user(tmp_path, "me") / "m.py"
    assert load_factory(f"{place}:make")()[0](None) == told("me")
    user(tmp_path, "you")
    assert load_factory(f"{place}:make")()[0](None) == told("you")


STRAYS = ("torch", "numpy", "queue", "random", "types", "yaml", "click", "colorsys", "wave", "ray")
WITHOUT = "import torch, random, types\ndef make():\n    return torch.nn.Flatten(), random.random, types.ModuleType\n"


@pytest.mark.slow
def test_strays_stand_in_for_nothing(tmp_path: Path):
    """Neither for what was loaded before nor, where the model does not import it, for what others load later."""
    written(tmp_path, {f"{name}.py": "raise ImportError('a stray')" for name in STRAYS} | {"m.py": WITHOUT})
    for name in ("colorsys", "wave"):
        sys.modules.pop(name, None)
    flatten, *_ = load_factory(f"{tmp_path}/m.py:make")()
    assert isinstance(flatten, torch.nn.Flatten)
    for name in STRAYS:
        assert Path(str(getattr(importlib.import_module(name), "__file__", "built in"))).parent != tmp_path


def test_what_an_installed_package_imports_meanwhile_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    installed = written(
        tmp_path / "site", {"installed_package.py": "import colorsys\ndef later():\n    import wave\n    return wave"}
    )
    monkeypatch.setattr("sys.path", [*sys.path, str(installed)])
    files = {
        "colorsys.py": "raise ImportError('a stray')",
        "wave.py": "raise ImportError('a stray')",
        "helper.py": "import installed_package\nWAVE = installed_package.later()",
        "m.py": "import helper\ndef make():\n    return helper.installed_package.colorsys.rgb_to_hsv, helper.WAVE.open",
    }
    for name in ("colorsys", "wave"):
        sys.modules.pop(name, None)
    assert len(load_factory(f"{written(tmp_path / 'mine', files)}/m.py:make")()) == 2


REGISTRY = {
    "registry.py": "KNOWN = {}",
    "nets/small.py": "from registry import KNOWN\nKNOWN['small'] = 3",
    "nets/late.py": "from registry import KNOWN\nKNOWN['late'] = 4",
    "m.py": """
from importlib import import_module
from registry import KNOWN
import_module("nets.small")
class Late:
    def __call__(self):
        import_module("nets.late")
        import registry
        assert registry.KNOWN is KNOWN
        return KNOWN
def make():
    return Late()
""",
}


def test_modules_that_are_imported_by_their_names_are_the_same_ones(tmp_path: Path):
    late = load_factory(f"{written(tmp_path / 'one', REGISTRY)}/m.py:make")()
    assert late() == {"small": 3, "late": 4}
    other = REGISTRY | {"nets/small.py": "from registry import KNOWN\nKNOWN['small'] = 5"}
    assert load_factory(f"{written(tmp_path / 'two', other)}/m.py:make")()() == {"small": 5, "late": 4}


def test_a_failed_module_is_tried_again_and_circular_imports_work(tmp_path: Path):
    files = {
        "fails.py": "from cluster import NOTHING",
        "cluster.py": "import circle\nVALUE = 1",
        "circle.py": "import cluster\nfrom jobs import inner\ndef value():\n    return cluster.VALUE + inner.VALUE",
        "jobs/__init__.py": "",
        "jobs/inner.py": "import circle\nVALUE = 2",
        "m.py": "import cluster, circle\ndef make():\n    return circle.value()\ndef broken():\n    import fails",
    }
    place = written(tmp_path, files) / "m.py"
    assert load_factory(f"{place}:make")() == 3
    for _ in range(2):
        with pytest.raises(ImportError, match="cannot import name 'NOTHING'"):
            load_factory(f"{place}:broken")()
    ours_work()


def test_a_folder_of_no_python_is_no_package(tmp_path: Path):
    files = {"robustq/notes.txt": "", "cluster/__init__.py": "VALUE = 1"}
    files |= {
        "m.py": "from robustq.jobs.errors import SpecError\nimport cluster\ndef make():\n    return SpecError, cluster.VALUE"
    }
    assert load_factory(f"{written(tmp_path, files)}/m.py:make")() == (robustq.jobs.errors.SpecError, 1)


def test_a_folder_beside_is_not_the_one_where_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package of the same name lies there, and there is on the path, as in a worker of Ray's."""
    written(tmp_path / "here", {"parts/__init__.py": "", "parts/one.py": "VALUE = 'here'"})
    files = {"parts/one.py": "VALUE = 'beside'", "m.py": "from parts.one import VALUE\ndef make():\n    return VALUE"}
    written(tmp_path / "other", files)
    monkeypatch.chdir(tmp_path / "here")
    for place in ("", str(tmp_path / "here")):
        monkeypatch.setattr("sys.path", [*sys.path, place])
        assert load_factory(f"{tmp_path}/other/m.py:make")() == "beside"


def test_robustq_itself_is_not_beside():
    """A model in the folder that robustq's code lies in imports robustq's."""
    assert not local_modules(Path(robustlib.models.__file__).parents[2] / "cli.py")


def test_what_is_beside_counts_in_the_hash(tmp_path: Path):
    place = user(tmp_path, "me") / "m.py"
    found = {"cluster", "utils", "jobs", "jobs.inner", "jobs.other", "jobs.lazy", "jobs.deep.leaf", "cli", "robustlib"}
    assert set(local_modules(place)) == found
    before = code_hash(place)
    (tmp_path / "cluster.py").write_text("VALUE = 2")
    assert code_hash(place) != before


@pytest.mark.slow
def test_a_compiled_model_imports_from_beside(tmp_path: Path):
    files = {
        "cluster.py": "import torch\ndef twice(x):\n    return torch.add(x, x)",
        "m.py": "import torch, cluster\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return cluster.twice(x) * len([1, 2])\ndef make():\n    return torch.compile(Net(), backend='eager')",
    }
    net = load_factory(f"{written(tmp_path, files)}/m.py:make")()
    assert torch.equal(net(torch.ones(2)), torch.full((2,), 4.0))


NAMED = {
    "cluster.py": "import dataclasses, typing\n@dataclasses.dataclass\nclass Config:\n    sizes: 'typing.List[int]'\n"
    "def first(sizes):\n    return sizes[0]",
    "jobs/__init__.py": "",
    "jobs/late.py": "from .more import VALUE",
    "jobs/more.py": "VALUE = 5",
    "m.py": """
import cluster, importlib, inspect, pickle, typing
from importlib import import_module

def make():
    found = pickle.loads(pickle.dumps(cluster.Config([3])))
    assert importlib.import_module("cluster") is import_module("cluster") is cluster
    assert typing.get_type_hints(cluster.Config) == {"sizes": typing.List[int]}
    assert "return sizes[0]" in inspect.getsource(cluster.first)
    assert import_module("jobs.late") is import_module(".late", "jobs")
    assert importlib.reload(cluster) is cluster
    return cluster.first(found.sizes), import_module("jobs.late").VALUE
""",
}


def test_what_looks_a_module_up_by_its_name_finds_the_folders(tmp_path: Path):
    """Also once the file has been imported, and robustq's module of that name has its name back."""
    assert load_factory(f"{written(tmp_path, NAMED)}/m.py:make")() == (3, 5)
    ours_work()


def test_modules_with_names_of_their_own_are_found_by_other_processes(tmp_path: Path):
    files = {"nets/__init__.py": "class Net:\n    pass", "m.py": "import nets\nmake = nets.Net"}
    net = load_factory(f"{written(tmp_path, files)}/m.py:make")()
    assert type(net).__module__ == "nets" and sys.modules["nets"].Net is type(net)


def test_a_thread_that_a_file_waits_for_may_import(tmp_path: Path):
    files = {
        "cluster.py": "VALUE = 6",
        "m.py": "import threading\nfound = []\ndef look():\n    import cluster\n    found.append(cluster.VALUE)\n"
        "thread = threading.Thread(target=look, daemon=True)\nthread.start()\nthread.join(10)\ndef make():\n    return found",
    }
    assert load_factory(f"{written(tmp_path, files)}/m.py:make")() == [6]


def test_a_missing_module_is_told_by_the_name_that_was_asked_for(tmp_path: Path):
    files = {
        "jobs/__init__.py": "",
        "m.py": "from importlib import import_module\ndef make():\n    import jobs.nothing\ndef named():\n"
        "    import_module('jobs.nothing')\ndef one():\n    from jobs import nothing",
    }
    place = written(tmp_path, files) / "m.py"
    for name in ("make", "named"):
        with pytest.raises(ModuleNotFoundError, match=r"^No module named 'jobs\.nothing'$"):
            load_factory(f"{place}:{name}")()
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        load_factory(f"{place}:one")()


def test_nothing_is_left_of_files_that_were_loaded_before(tmp_path: Path):
    place = user(tmp_path, "me") / "m.py"
    load_factory(f"{place}:make")
    before = len(sys.modules), len(sys.meta_path), len(sys.path)
    for _ in range(3):
        load_factory(f"{place}:make")
    assert (len(sys.modules), len(sys.meta_path), len(sys.path)) == before
