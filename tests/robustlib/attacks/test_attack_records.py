"""What is said of an attack once, and what its parameters say of it."""

import ast
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.types import Attack, Stage, as_stage
from robustlib.checks.consistency import WITHOUT_GRADIENTS
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.inference.throughput import Work

ROOT = Path(__file__).parents[3]


class Right(nn.Module):
    """Everything is class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)


def names(field: str) -> set[str]:
    return {name for name, attack in ATTACKS.items() if getattr(attack, field)}


def test_what_parameters_say():
    assert names("counts_queries") == {"square", "spsa", "nes", "hopskipjump", "noise", "transfer"}
    assert names("takes_start") == {"pgd", "apgd-ce", "apgd-dlr"}
    assert names("eps_per_example") == {"pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"}
    assert set(ATTACKS) - names("takes_eps") == {"clean", "corruption"}
    assert names("lacks_surrogate") == {"transfer"}


def test_names_without_gradients_are_those_whose_cost_has_none():
    """Checks of stored rows know these names without torch."""
    assert set(ATTACKS) - names("uses_gradient") == WITHOUT_GRADIENTS


# An example that stands to the end, counted by hand from the defaults.
PASSES = {
    "clean": Work(0),
    "fgsm": Work(1, 1),
    "pgd": Work(10, 10),
    "mifgsm": Work(10, 10),
    "apgd-ce": Work(101, 101),
    "apgd-dlr": Work(101, 101),
    "apgd-t": Work(10 + 9 * 101, 9 * 101),
    "fab": Work(1 + 100 * 11, 100 * 9),
    "fab-t": Work(1 + 100 * 9 * 2, 100 * 9),
    "square": Work(5000),
    "deepfool": Work(1 + 5 * 11, 10 + 5 * 10),
    "cw": Work(9000, 9000),
    "fmn": Work(100, 100),
    "spsa": Work(5000),
    "nes": Work(5000),
    "hopskipjump": Work(5000),
    "noise": Work(1000),
    "transfer": Work(1),
    "corruption": Work(0),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_cost_of_an_attack(name: str):
    assert ATTACKS[name].cost(ATTACKS[name].defaults) == PASSES[name]


def test_only_transfer_asks_a_surrogate():
    assert names("surrogate_cost") == {"transfer"}
    cost = ATTACKS["transfer"].surrogate_cost
    assert cost is not None and cost(ATTACKS["transfer"].defaults) == Work(50, 50)


def test_a_stage_is_what_it_was_made_of():
    """A record with arguments given stays a record; anything else is a function with parameters."""
    given = as_stage(partial(ATTACKS["pgd"], eps=0.1, steps=3))
    assert isinstance(given, Attack) and given.one_search
    assert given.defaults["eps"] == 0.1 and given.cost(given.defaults) == Work(3, 3)
    assert isinstance(given.run, partial) and given.run.func is pgd and given.run.keywords["stop_at_success"]
    assert as_stage(given) is given and ATTACKS["pgd"].defaults["eps"] == 8 / 255
    assert type(as_stage(fgsm)) is Stage and as_stage(fgsm).settings.keys() == ATTACKS["fgsm"].settings.keys()
    assert ENSEMBLES["autoattack"](norm="L2", eps=0.5).stages[0][0] == "apgd-ce"


def test_functions_of_a_users_own_are_given_what_they_take():
    """Plain functions and partials, with `start` and `spent` or without."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def bare(model: nn.Module, x: Tensor, y: Tensor, draws: object) -> Tensor:
        seen.append(("bare", {}))
        return x

    def full(
        model: nn.Module, x: Tensor, y: Tensor, *, eps: float, draws: object, start: Tensor, spent: Tensor
    ) -> Tensor:
        seen.append(("full", {"eps": eps, "start": start, "spent": spent.clone()}))
        spent += 7
        return x

    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    found = attack_in_sequence(Right().eval(), x, y, [partial(full, eps=0.5), bare, as_stage(bare)], start=x / 2)
    assert [name for name, _ in seen] == ["full", "bare", "bare"]
    assert torch.equal(seen[0][1]["start"], x / 2) and seen[0][1]["eps"] == 0.5 and not seen[0][1]["spent"].any()
    assert found.queries.tolist() == [7, 7, 7] and found.broken_by.tolist() == [3, 3, 3]


# Who may read a signature: the record of an attack, the checks at a function's entry, and those who look at a model's
# factory. Others ask `robustlib.arguments.keywords`, of what is no attack.
SIGNATURES = {
    "robustlib/arguments.py",
    "robustlib/attacks/types.py",
    "robustlib/export/programs.py",
    "robustlib/input_checks.py",
    "robustlib/models/loading.py",
    "jobs/commands/names_text.py",
}
NO_ATTACKS = {
    "jobs/commands/names_text.py": {"audit", "certify", "defence"},
    "jobs/submission/validation/parameters.py": {"audit", "certify", "DEFENCES[defence.name]"},
    "jobs/submission/study_schema.py": {"audit", "certify", "f"},  # the last of DEFENCES
    "robustlib/arguments.py": {"function"},
    "robustlib/input_checks.py": {"function"},
}


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            if (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")) == name:
                yield node


@pytest.mark.slow
def test_no_one_but_the_record_looks_at_an_attacks_signature():
    for path in [path for top in ("robustlib", "jobs") for path in (ROOT / top).rglob("*.py")]:
        where = path.relative_to(ROOT).as_posix()
        read = {name: list(calls(path, name)) for name in ("signature", "getfullargspec", "keywords")}
        assert not read["getfullargspec"] and (where in SIGNATURES or not read["signature"]), where
        assert {ast.unparse(call.args[0]) for call in read["keywords"]} <= NO_ATTACKS.get(where, set()), where
    (of_models,) = calls(ROOT / "jobs/commands/names_text.py", "signature")
    assert ast.unparse(of_models.args[0]) == "make"
