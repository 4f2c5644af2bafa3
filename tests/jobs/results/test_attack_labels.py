"""Attacks of one name that are not the same attack, told apart by what differs in their specs."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from robustq.jobs.results import attack_labels
from robustq.jobs.specs import AttackSpec, FileRef, ModelSpec, SurrogateSpec
from robustq.jobs.text.attack_words import attack_settings

SURROGATE = SurrogateSpec(model=ModelSpec(arch="lenet5", weights=FileRef(place="w.safetensors", sha256="ab")))


def pgd(eps: float, norm: Any = "Linf", restarts: int = 1, curve: tuple[float, ...] = (), **params: Any) -> AttackSpec:
    return AttackSpec(name="pgd", norm=norm, eps=eps, restarts=restarts, curve=curve, params=params)


def stored(spec: AttackSpec) -> dict[str, Any]:
    """The spec as a store has it."""
    return json.loads(json.dumps(spec.model_dump(mode="json")))


def told_apart(specs: list[AttackSpec]) -> list[str]:
    """Labels of evaluations under these attacks; the settings of no job are read without need."""
    rows = [
        {"attack": spec.name, "norm": spec.norm, "eps": spec.eps, "recipe": spec.recipe, "job_id": i}
        for i, spec in enumerate(specs)
    ]

    def read(ids: Iterable[int]) -> dict[int, Any]:
        several = {(row["attack"], row["norm"]) for row in rows for other in rows if beside(row, other)}
        assert all((rows[id_]["attack"], rows[id_]["norm"]) in several for id_ in ids)
        return {id_: attack_settings(stored(specs[id_])) for id_ in ids}

    return attack_labels.told_apart(rows, read)


def beside(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether these are two recipes of one attack at a radius."""
    return row["recipe"] != other["recipe"] and all(row[name] == other[name] for name in ("attack", "norm", "eps"))


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (AttackSpec(name="clean"), {}),
        (
            AttackSpec(name="pgd", params={"loss": "ce", "steps": 20, "step_size": None}, restarts=2, curve=(0.1, 0.2)),
            {"loss": "loss=ce", "steps": "steps=20", "restarts": "restarts=2"},
        ),
        (
            AttackSpec(name="made-up", params={"sizes": [1, 2], "word": "a, b (c)", "x": 1}),
            {"sizes": "sizes=[1, 2]", "word": "word=a, b (c)", "x": "x=1"},
        ),
        (AttackSpec(name="made-up", params={"word": "a, steps=5) x2"}), {"word": "word=a, steps=5) x2"}),
        (AttackSpec(name="autoattack", params={"version": "plus"}), {"version": "plus/1"}),
        (AttackSpec(name="autoattack", params={"version": "rand"}, curve=(0.1,)), {"version": "rand/1"}),
        (
            AttackSpec(name="transfer", params={"steps": 5}, surrogate=SURROGATE),
            {"steps": "steps=5", "source": f"from {SURROGATE.words}"},
        ),
        (
            AttackSpec(name="transfer", params={"steps": 5}),
            {"steps": "steps=5", "source": "from a network that learnt its answers"},
        ),
    ],
)
def test_settings_are_read_from_the_spec(spec, settings):
    assert attack_settings(stored(spec)) == settings


def test_settings_are_read_also_of_what_is_refused_today():
    spec = {"name": "pgd", "norm": "Linf", "eps": 8.0, "restarts": 1, "curve": [], "params": {"steps": 0}, "old": 1}
    assert attack_settings(spec) == {"steps": "steps=0"}


def test_what_is_the_same_attack_keeps_its_name():
    specs = [
        pgd(0.1, step_size=0.01, steps=10),
        pgd(0.2, step_size=0.02, steps=10),  # grows with the radius
        pgd(0.1, "L2", step_size=0.5, steps=10),
        AttackSpec(name="certify", norm="L2", eps=0.1, params={"sigma": 0.25}),
        AttackSpec(name="certify", norm="L2", eps=0.1, params={"sigma": 0.5}),
        AttackSpec(name="corruption", params={"kind": "snow", "severity": 1}),
        AttackSpec(name="corruption", params={"kind": "snow", "severity": 2}),
    ]
    assert told_apart(specs) == [spec.name for spec in specs]
    assert told_apart([]) == []


def test_worst_cases_are_one_attack():
    """Of however many attacks they are the worst; their specs name none."""
    rows = [
        {"attack": "worst-case", "norm": "Linf", "eps": 0.1, "recipe": f"worst of {n}", "job_id": n} for n in (2, 3)
    ]
    assert attack_labels.told_apart(rows, lambda ids: {id_: {}[id_] for id_ in ids}) == ["worst-case"] * 2


def test_what_differs_at_one_radius_is_named_at_all():
    specs = [
        pgd(0.1, curve=(0.1, 0.2), loss="ce", steps=10),
        pgd(0.2, curve=(0.1, 0.2), loss="ce", steps=10),
        pgd(0.2, restarts=5, loss="ce", steps=50),
        pgd(0.5, "L2", loss="ce", steps=10),
    ]
    assert told_apart(specs) == ["pgd steps=10", "pgd steps=10", "pgd steps=50 restarts=5", "pgd"]


def test_versions_of_autoattack_are_told_apart():
    specs = [
        AttackSpec(name="autoattack", norm="Linf", eps=0.1, params={"version": "standard"}),
        AttackSpec(name="autoattack", norm="Linf", eps=0.1, params={"version": "plus"}, curve=(0.1, 0.2, 0.3)),
    ]
    assert told_apart(specs) == ["autoattack standard/1", "autoattack plus/1"]
