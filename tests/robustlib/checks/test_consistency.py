"""Checks of several attacks against each other, on outcomes made up."""

import numpy as np
import pytest

from robustlib.checks.consistency import across_attacks, across_stages

N = 100


def outcome(broken: int, by: str, first: int = 0) -> dict[str, np.ndarray]:
    """The images from `first` on, so many of them, fell to this attack."""
    fell = (np.arange(N) >= first) & (np.arange(N) < first + broken)
    return {"index": np.arange(N), "success": fell, "broken_by": np.where(fell, by, "")}


def values(
    *attacks: tuple[str, float, dict[str, np.ndarray]],
    recipes: list[str] | None = None,
    one_search: list[bool] | None = None,
) -> dict[str, float]:
    names, eps, outcomes = zip(*attacks, strict=True)
    found = across_attacks(names, eps, outcomes, recipes, one_search)
    return {one.name: one.value for one in found if one.value is not None}


@pytest.mark.parametrize(("check", "attack"), [("square-beats-gradients", "square"), ("surrogate", "transfer")])
def test_what_alone_broke_images_that_gradients_left(check: str, attack: str):
    other = (attack, 0.1, outcome(30, attack, 10))
    assert values(("pgd", 0.1, outcome(20, "pgd")), other)[check] == pytest.approx(0.2)
    assert values(("pgd", 0.1, outcome(50, "pgd")), other)[check] == 0
    # Noise has no gradients either: that it broke them too does not help the gradients.
    noise = ("noise", 0.1, outcome(60, "noise"))
    assert values(("pgd", 0.1, outcome(20, "pgd")), noise, other)[check] == pytest.approx(0.2)
    # At a smaller radius fewer may fall.
    assert check not in values(("pgd", 0.2, outcome(20, "pgd")), other)


def test_square_in_an_ensemble_is_square():
    by = outcome(30, "apgd-ce")
    by["broken_by"][:7] = "square"
    assert values(("autoattack", 0.1, by))["square-beats-gradients"] == pytest.approx(0.07)


@pytest.mark.parametrize("others", [["noise"], ["spsa", "nes"], ["hopskipjump", "clean"], ["transfer"]])
def test_without_gradients_there_is_nothing_to_beat(others: list[str]):
    """As of a model behind an address."""
    found = values(("square", 0.1, outcome(50, "square")), *[(name, 0.1, outcome(5, name)) for name in others])
    assert not {"square-beats-gradients", "surrogate"} & set(found)


def test_radii_of_one_search_tell_nothing():
    """What stands at one counts as standing below: the accuracy cannot rise, whatever the attack."""
    attacks = [("pgd", 0.1, outcome(50, "pgd")), ("pgd", 0.2, outcome(60, "pgd"))]
    names, eps, outcomes = zip(*attacks, strict=True)
    found = across_attacks(names, eps, outcomes, ["pgd(steps=10), 2 radii as one search"] * 2, [True, True])
    assert [(one.value, one.verdict) for one in found if one.name == "accuracy-rises-with-eps"] == [(None, "pass")]
    both = [*attacks, ("apgd-ce", 0.1, outcome(50, "apgd-ce")), ("apgd-ce", 0.2, outcome(20, "apgd-ce"))]
    recipes = ["pgd(steps=10), 2 radii as one search"] * 2 + ["apgd-ce(steps=10)"] * 2
    searched = [True, True, False, False]
    assert values(*both, recipes=recipes, one_search=searched)["accuracy-rises-with-eps"] == pytest.approx(0.3)


def test_only_equal_attacks_are_compared_by_radius():
    """A worse surrogate at a larger radius says nothing against either; nor do two at one radius."""
    attacks = [
        ("transfer", 0.1, outcome(50, "transfer")),
        ("transfer", 0.1, outcome(10, "transfer")),
        ("transfer", 0.2, outcome(20, "transfer")),
    ]
    assert values(*attacks, recipes=["from a", "from b", "from b"])["accuracy-rises-with-eps"] == 0
    assert values(*attacks, recipes=["from a", "from b", "from a"])["accuracy-rises-with-eps"] == pytest.approx(0.3)


def stages(names: list[str], **broken: int) -> dict[str, float | None]:
    """Values of the checks of an ensemble of which each attack broke so many images."""
    by = np.repeat([*broken, ""], [*broken.values(), N - sum(broken.values())])
    found = across_stages(names, {"index": np.arange(N), "broken_by": by})
    return {one.name: one.value for one in found}


def test_stages_of_an_ensemble_are_compared_by_its_own_outcome():
    assert stages(["apgd-ce", "square"], square=7, clean=3) == {"square-beats-gradients": 0.07}
    assert stages(["pgd", "transfer"], pgd=5, transfer=4) == {"surrogate": 0.04}
    assert stages(["pgd", "fgsm"], pgd=5, fgsm=6) == {"fgsm-beats-pgd": 0.06}
    # One image of few is no more than chance; the first to be asked breaks what the others would.
    assert stages(["apgd-ce", "square"], square=1) == {"square-beats-gradients": 0}
    for names in (["square", "apgd-ce"], ["noise", "square"], ["fgsm", "pgd"], ["pgd", "pgd"], []):
        assert stages(names, square=7, fgsm=6) == {}


def test_what_square_broke_before_gradient_attacks_came_tells_nothing():
    """AutoAttack plus: APGD-T comes after Square, and may have broken the same images."""
    outcome = {"broken_by": np.array(["square"] * 5 + ["apgd-t"] * 30 + [""] * 65), "index": np.arange(100)}
    (plus,) = across_stages(["apgd-ce", "fab", "square", "apgd-t", "fab-t"], outcome)
    assert (plus.name, plus.value, plus.verdict) == ("square-beats-gradients", None, "pass")
    (standard,) = across_stages(["apgd-ce", "apgd-t", "fab-t", "square"], outcome)
    assert (standard.value, standard.verdict) == (0.05, "fail")
