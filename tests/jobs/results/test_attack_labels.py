"""Attacks of one name that are not the same attack, told apart by what differs in their recipes."""

import pytest

from robustq.jobs.results.attack_labels import settings_of, told_apart
from robustq.jobs.specs import AttackSpec, FileRef, ModelSpec, SurrogateSpec

SURROGATE = SurrogateSpec(model=ModelSpec(arch="lenet5", weights=FileRef(place="w.safetensors", sha256="ab")))


def row(attack: str, recipe: str, eps: float | None = 0.1, norm: str = "Linf") -> dict[str, object]:
    return {"attack": attack, "norm": norm, "eps": eps, "recipe": recipe}


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
def test_a_recipe_is_read_as_it_was_written(spec, settings):
    assert settings_of(spec.recipe) == settings


def test_what_is_the_same_attack_keeps_its_name():
    rows = [
        row("pgd", "pgd(step_size=0.01, steps=10)", 0.1),
        row("pgd", "pgd(step_size=0.02, steps=10)", 0.2),  # grows with the radius
        row("pgd", "pgd(step_size=0.5, steps=10)", 0.1, "L2"),
        row("worst-case", "worst of 3"),
        row("worst-case", "worst of 2"),
        row("certify", "certify(sigma=0.25)"),
        row("certify", "certify(sigma=0.5)"),
        row("corruption", "corruption(kind=snow, severity=1)", None),
        row("corruption", "corruption(kind=snow, severity=2)", None),
    ]
    assert told_apart(rows) == [row["attack"] for row in rows]
    assert told_apart([]) == []


def test_what_differs_at_one_radius_is_named_at_all():
    rows = [
        row("pgd", "pgd(loss=ce, steps=10), 2 radii as one search", 0.1),
        row("pgd", "pgd(loss=ce, steps=10), 2 radii as one search", 0.2),
        row("pgd", "pgd(loss=ce, steps=50) x5", 0.2),
        row("pgd", "pgd(loss=ce, steps=10)", 0.5, "L2"),
    ]
    assert told_apart(rows) == ["pgd steps=10", "pgd steps=10", "pgd steps=50 restarts=5", "pgd"]


def test_versions_of_autoattack_are_told_apart():
    rows = [row("autoattack", "autoattack-standard/1"), row("autoattack", "autoattack-plus/1, 3 radii as one search")]
    assert told_apart(rows) == ["autoattack standard/1", "autoattack plus/1"]
