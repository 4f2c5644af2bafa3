"""What an attack may know of its model, and the shape of its steps."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from robustlib import hyperplane, norms
from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.inference.oracle import Oracle
from robustlib.inference.steps import Nearest, Rows
from tests.helpers.reading import AUTOATTACK, PGD, lines_of

ROOT = Path(__file__).parents[3]
OUR_MODELS = {"Oracle", "PlainModel", "BatchedModel", "Replica", "Expectation", "Graphs"}
# Who may look at what a user hands in as a model, or at a model's layers.
LOOKS_AT_MODELS = ("robustlib/inference/", "robustlib/models/", "robustlib/input_checks.py")
STEPS = [
    (name, norm)
    for name in ("fgsm", "pgd", "mifgsm", "apgd-ce", "apgd-t", "deepfool", "cw", "fmn", "fab", "fab-t", "square")
    for norm in ATTACKS[name].norms
]


def calls(path: Path, name: str) -> list[ast.Call]:
    tree = ast.walk(ast.parse(path.read_text()))
    return [node for node in tree if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


@pytest.mark.slow
def test_nobody_asks_what_kind_of_model_it_has():
    for path in [*(ROOT / "robustlib").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        where = str(path.relative_to(ROOT))
        for call in calls(path, "isinstance"):
            names = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
            names |= {node.attr for node in ast.walk(call.args[1]) if isinstance(node, ast.Attribute)}
            assert not names & OUR_MODELS or where == "robustlib/inference/oracle.py", f"{where}:{call.lineno}"
            assert "Module" not in names or where.startswith(LOOKS_AT_MODELS), f"{where}:{call.lineno}"


@pytest.mark.slow
def test_signatures_are_read_in_the_record_and_where_arguments_are_checked():
    found = {
        str(path.relative_to(ROOT))
        for top in ("robustlib", "jobs")
        for path in (ROOT / top).rglob("*.py")
        if calls(path, "inspect.signature") or calls(path, "signature")
    }
    of_models = {"robustlib/models/loading.py", "robustlib/export/programs.py", "jobs/commands/names_text.py"}
    assert found <= {"robustlib/attacks/types.py", "robustlib/arguments.py", "robustlib/input_checks.py"} | of_models


def test_an_attack_is_read_in_few_lines():
    """Lines of code from its signature to the last line of mathematics, without docstrings: 243 and 945 when written."""
    pgd, autoattack = lines_of(PGD), lines_of(AUTOATTACK)
    assert len(pgd) <= 5 and 150 < sum(pgd.values()) <= 260
    assert {"robustlib.attacks.square", "robustlib.attacks.fab", "robustlib.evaluation.attack_sequence"} < set(
        autoattack
    )
    assert 600 < sum(autoattack.values()) <= 1000


@pytest.fixture
def on_fakes(monkeypatch: pytest.MonkeyPatch) -> list[type[Rows]]:
    """Every run takes three steps on tensors without numbers first: what looks at a number, or makes a shape that depends
    on one, raises there. The states that did so.
    """
    seen: list[type[Rows]] = []
    for module in (hyperplane, norms):
        monkeypatch.setattr(module, "looks", lambda tensor: False)  # as on a device

    walk = Oracle.take_steps

    def steps(oracle: Oracle, search: Any, run: Any, place: Tensor, phases: Any, found: tuple[Tensor, ...]) -> Any:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = run.with_rows({name: mode.from_tensor(rows) for name, rows in run.rows().items()})
            shapes = {name: rows.shape for name, rows in fakes.rows().items()}
            for phase in phases[:3]:
                answer = search.ask(oracle, fakes, phase)
                assert answer.shape == fakes.y.shape
                if isinstance(fakes, Nearest):
                    fakes.nearer = answer < fakes.distance
                search.move(oracle, fakes, phase)
            assert shapes.items() <= {name: rows.shape for name, rows in fakes.rows().items()}.items()
        seen.append(type(run))
        return walk(oracle, search, run, place, phases, found)

    monkeypatch.setattr(Oracle, "take_steps", steps)
    return seen


def run(name: str, norm: Norm, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    short = {"steps": 4, "queries": 12, "search_steps": 1, "targets": 2, "classes": 3}
    options = {key: value for key, value in short.items() if key in ATTACKS[name].settings}
    return ATTACKS[name](net, x, y, norm=norm, eps={"Linf": 0.1, "L2": 1.0, "L1": 4.0}[norm], **options)


@pytest.mark.parametrize("name, norm", STEPS)
def test_steps_are_over_tensors_of_fixed_shape(name: str, norm: Norm, on_fakes: list, net: nn.Module, test):
    x, y = test[0][:6], test[1][:6]
    expected = run(name, norm, net, x, y)
    assert on_fakes
    assert torch.equal(run(name, norm, net, x, y), expected)
