"""A grid is its points written by hand: the same study, the same keys; what is wrong in it is told with its line."""

from pathlib import Path

import pytest

from robustq.jobs.errors import SpecError
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.text.grid_names import grid_name, grid_settings

GRID = """
name: s
train: {epochs: 1}
models:
  plain: {arch: lenet5, train: {objective: standard}}
  robust:
    arch: lenet5
    train: {objective: pgd, grid: {steps: [1, 3], eps: [4/255, 8/255]}}
  squeezed:
    arch: lenet5
    train: {objective: standard}
    defence: {name: bit_depth, grid: {bits: [3, 4]}}
attacks:
  - {name: fgsm, eps: 8/255}
  - {name: pgd, eps: 8/255, grid: {steps: [2, 4]}}
examples: 10
"""
BY_HAND = """
name: s
train: {epochs: 1}
models:
  plain: {arch: lenet5, train: {objective: standard}}
  "robust[steps=1,eps=4/255]": {arch: lenet5, train: {objective: pgd, steps: 1, eps: 4/255}}
  "robust[steps=1,eps=8/255]": {arch: lenet5, train: {objective: pgd, steps: 1, eps: 8/255}}
  "robust[steps=3,eps=4/255]": {arch: lenet5, train: {objective: pgd, steps: 3, eps: 4/255}}
  "robust[steps=3,eps=8/255]": {arch: lenet5, train: {objective: pgd, steps: 3, eps: 8/255}}
  "squeezed[bits=3]": {arch: lenet5, train: {objective: standard}, defence: {name: bit_depth, bits: 3}}
  "squeezed[bits=4]": {arch: lenet5, train: {objective: standard}, defence: {name: bit_depth, bits: 4}}
attacks:
  - {name: fgsm, eps: 8/255}
  - {name: pgd, eps: 8/255, steps: 2}
  - {name: pgd, eps: 8/255, steps: 4}
examples: 10
"""


def study(folder: Path, text: str, **changes):
    path = folder / "s.yaml"
    path.write_text(text)
    return load_study(path, changes)


def test_a_grid_is_its_points_written_by_hand(tmp_path):
    (grid, of_grid), (hand, of_hand) = (study(tmp_path, text) for text in (GRID, BY_HAND))
    assert list(grid.models) == list(hand.models)
    assert grid == hand
    found, wanted = (resolve(one, origin, tmp_path, tmp_path) for one, origin in ((grid, of_grid), (hand, of_hand)))
    assert found.identity == wanted.identity  # the store takes them for one sweep
    keys = [[(job.key, job.model, job.needs) for job in expand(one)] for one in (found, wanted)]
    assert keys[0] == keys[1] and len(keys[0]) > 20


def test_the_studys_own_training_is_a_grid_of_every_trained_model(tmp_path):
    text = GRID.replace("train: {epochs: 1}", "train: {grid: {epochs: [1, 2]}}")
    text = text.replace("train: {objective: standard}}", "train: {objective: standard, epochs: 5}}", 1)
    found, _ = study(tmp_path, text)
    names = [f"robust[epochs={n},steps={b},eps={e}]" for n in (1, 2) for b in (1, 3) for e in ("4/255", "8/255")]
    assert list(found.models) == ["plain", *names, *(f"squeezed[epochs={n},bits={b}]" for n in (1, 2) for b in (3, 4))]
    assert {(model.train or {})["epochs"] for name, model in found.models.items() if "epochs=2" in name} == {2}
    assert found.train == {}


def test_settings_of_one_name_are_told_apart_by_their_place(tmp_path):
    text = """
models:
  a:
    arch: lenet5
    train: {grid: {seed_of: [1]}}
    options: {grid: {width: [1, 2]}}
    defence: [{name: bit_depth, grid: {bits: [3]}}, {name: bit_depth, grid: {bits: [5, 6]}}]
attacks: [{name: clean}]
"""
    found, _ = study(tmp_path, text)
    assert list(found.models) == [
        f"a[seed_of=1,width={w},defence.0.bits=3,defence.1.bits={b}]" for w in (1, 2) for b in (5, 6)
    ]


def test_what_is_no_grid_stays_what_it_is(tmp_path):
    """A factory may have an argument of this name."""
    text = "models: {a: {file: 'm.py:build', options: {grid: 7}}}\nattacks: [{name: clean}]\n"
    assert study(tmp_path, text)[0].models["a"].options == {"grid": 7}


WRONG = {
    "grid: {bits: 3}": "s.yaml:12: models.squeezed.defence.grid.bits: expected a list of values, got 3",
    "grid: {bits: []}": "s.yaml:12: models.squeezed.defence.grid.bits: expected a list of values, got []",
    "grid: [3, 4]": "s.yaml:12: models.squeezed.defence.grid: expected settings with lists of values, as {steps: [10, 20]}, got [3, 4]",
    "grid: {}": "s.yaml:12: models.squeezed.defence.grid: expected settings with lists of values, as {steps: [10, 20]}, got {}",
    "grid: {bits: [3, 4, 3]}": "s.yaml:12: models.squeezed.defence.grid.bits: 3 is given twice",
    "bits: 4, grid: {bits: [3]}": "s.yaml:12: models.squeezed.defence.grid.bits: bits is set beside the grid too",
    "grid: {bits: [3, 99]}": "s.yaml:12: bit_depth: expected bits from 1 to 8, got 99",
}  # fmt: skip


@pytest.mark.parametrize("written", WRONG)
def test_what_is_wrong_in_a_grid_is_told_with_its_line(tmp_path, written):
    with pytest.raises(SpecError) as error:
        found, origin = study(tmp_path, GRID.replace("grid: {bits: [3, 4]}", written))
        expand(resolve(found, origin, tmp_path, tmp_path))
    assert str(error.value).removeprefix(f"{tmp_path}/") == WRONG[written]


def test_a_grid_has_bounds_and_names_of_its_own(tmp_path):
    many = f"grid: {{bits: [3, 4], pad: {list(range(600))}}}"
    with pytest.raises(SpecError, match=r"expected a grid of at most 1000 points, got 1200"):
        study(tmp_path, GRID.replace("grid: {bits: [3, 4]}", many))
    taken = GRID.replace("  plain:", '  "squeezed[bits=3]": {arch: lenet5, train: {}}\n  plain:')
    with pytest.raises(SpecError, match=r"two models are called 'squeezed\[bits=3\]'"):
        study(tmp_path, taken)


def test_epochs_of_the_command_line_count_for_every_point(tmp_path):
    found, _ = study(tmp_path, GRID, epochs=7)
    assert {(model.train or {})["epochs"] for model in found.models.values()} == {7}


@pytest.mark.parametrize(
    "settings",
    [{"beta": "3"}, {"eps": "8/255", "epochs": "20"}, {"widths": "[1,2]", "defence.0.bits": "3"}, {"name": "a=b"}],
    ids=str,
)
def test_names_of_points_are_read_back(settings):
    assert grid_settings(grid_name("b-[x]", settings)) == ("b-[x]", settings)


def test_other_names_have_no_settings():
    for name in ("plain", "a[b]", "odd%_[x]|'\"", "a=b", "[]"):
        assert grid_settings(name) == (name, {})
