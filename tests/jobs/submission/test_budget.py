"""A study cut to a budget, by hand: clean, then one attack everywhere, then the rest; lengths of time as typed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from robustlib.inference.throughput import Rates
from robustlib.settings import TrainSettings
from robustq import cli
from robustq.jobs.queue.status import counts
from robustq.jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec, TrainSpec, WorstSpec
from robustq.jobs.store.connection import open_store
from robustq.jobs.submission import dry_run, study_sources
from robustq.jobs.submission.budget import Budget, Cut, cut, known_seconds
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.wall_time import Slots
from robustq.jobs.text.durations import read_duration
from tests.helpers.steady_calibration import fix_rates

DATA = DataRef(place="digits", sha256="d" * 64)
ATTACKS = {
    "clean": AttackSpec(name="clean"),
    "fgsm": AttackSpec(name="fgsm", norm="Linf", eps=0.1),
    "pgd": AttackSpec(name="pgd", norm="Linf", eps=0.1),
    "aa": AttackSpec(name="autoattack", norm="Linf", eps=0.1, params={"version": "standard"}),
    "near": AttackSpec(name="apgd-ce", norm="Linf", eps=0.1, curve=(0.1, 0.2)),
    "far": AttackSpec(name="apgd-ce", norm="Linf", eps=0.2, curve=(0.1, 0.2)),
}


def planned(key: str, spec: Any, needs: tuple[str, ...] = ()) -> Planned:
    return Planned(spec, key, needs, key[0], "lenet5", None, "digits", 0)


def plan_of(models: str, attacks: str) -> list[Planned]:
    """Each model with its training `a`, its evaluations `a:pgd`, and the worst of them, `a:worst`."""
    found = []
    for model in models:
        spec = ModelSpec(arch="lenet5", options={"which": model})
        found.append(planned(model, TrainSpec(model=spec, data=DATA, settings=TrainSettings())))
        names = attacks.split()
        for name in names:
            evaluation = EvalSpec(model=spec, train=model, data=DATA, attack=ATTACKS[name])
            found.append(planned(f"{model}:{name}", evaluation, (model,)))
        keys = tuple(f"{model}:{name}" for name in names if name != "clean")
        found.append(planned(f"{model}:worst", WorstSpec(evals=keys, norm="Linf", eps=0.1), keys))
    return found


def seconds_of(plan: list[Planned], **by_name: float) -> dict[str, float]:
    """By the model for trainings, by the attack for evaluations."""
    return {job.key: by_name.get(job.key.partition(":")[2] or job.key, 0.0) for job in plan}


def keys(jobs: list[Planned]) -> list[str]:
    return [job.key for job in jobs]


TIMES = {"a": 100.0, "b": 50.0, "clean": 1.0, "fgsm": 2.0, "pgd": 20.0, "aa": 300.0}


def cut_to(budget: float, slots: int = 1, **changed: float) -> Cut:
    plan = plan_of("ab", "clean aa fgsm pgd")
    return cut(plan, seconds_of(plan, **TIMES | changed), budget, slots)


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (10, []),  # no training fits
        (52, ["b", "b:clean"]),  # b is the cheaper one; 1 s is left, not enough for fgsm
        (54, ["b", "b:clean", "b:fgsm"]),
        (152, ["b", "b:clean", "a", "a:clean"]),
        (157, ["b", "b:clean", "a", "a:clean", "a:fgsm", "b:fgsm"]),  # 5 s are left: none is cheap, FGSM the cheapest
        # 80 s are left: PGD on both takes 40, at most half; then what is left of the rest.
        (232, ["b", "b:clean", "a", "a:clean", "a:pgd", "b:pgd", "a:fgsm", "b:fgsm"]),
        # 700 s are left: AutoAttack on both takes 600, PGD is the strongest cheap one, and one AutoAttack fits then.
        (
            852,
            [
                "b",
                "b:clean",
                "a",
                "a:clean",
                "a:pgd",
                "b:pgd",
                "a:fgsm",
                "b:fgsm",
                "a:aa",
                "b:aa",
                "a:worst",
                "b:worst",
            ],
        ),
        (700, ["b", "b:clean", "a", "a:clean", "a:pgd", "b:pgd", "a:fgsm", "b:fgsm", "a:aa", "a:worst"]),
    ],
)
def test_the_jobs_that_fit_in_the_order_of_their_value(budget: float, chosen: list[str]):
    found = cut_to(budget)
    assert keys(found.chosen) == chosen
    assert set(keys(found.chosen + found.left_out)) == {job.key for job in plan_of("ab", "clean aa fgsm pgd")}
    assert found.wall_seconds <= budget


def test_the_strongest_attack_goes_first_where_it_is_cheap():
    found = cut_to(2000)
    assert keys(found.chosen)[:6] == ["b", "b:clean", "a", "a:clean", "a:aa", "b:aa"]
    assert (found.left_out, found.left_seconds, found.wall_seconds) == ([], 0, 2 * 323 + 150)


def test_a_budget_is_wall_clock_on_the_slots():
    """On two slots trainings run side by side; a chain that is longer than the budget fits on no number of them."""
    assert keys(cut_to(101, slots=2).chosen)[:4] == ["b", "b:clean", "a", "a:clean"]
    assert keys(cut_to(99, slots=64).chosen) == ["b", "b:clean", "b:fgsm", "b:pgd"]
    # FGSM on `a` would be done after 102 seconds, of which 101 are there.
    found = cut_to(101, slots=2)
    assert found.wall_seconds == 101 and keys(found.chosen) == ["b", "b:clean", "a", "a:clean", "b:fgsm", "b:pgd"]


def test_what_is_done_costs_nothing_what_cannot_be_told_too_much():
    # Both trainings and the clean evaluations are done: 44 s buy the rest but AutoAttack.
    found = cut_to(44, a=0, b=0, clean=0)
    assert {"a:pgd", "b:pgd", "a:fgsm", "b:fgsm", "a:clean", "b:clean"} <= set(keys(found.chosen))
    assert keys(found.left_out) == ["a:aa", "a:worst", "b:aa", "b:worst"] and found.left_seconds == 600
    plan = plan_of("a", "clean pgd")
    told = known_seconds(plan, lambda job: {"a": 5.0, "a:clean": None, "a:pgd": float("nan")}.get(job.key, 0.0))
    assert keys(cut(plan, told, 1e6, 1).chosen) == ["a", "a:pgd", "a:worst"]


def test_radii_of_one_search_are_chosen_together():
    plan = plan_of("a", "clean near far")
    times = seconds_of(plan, a=10, clean=1, near=5, far=5)
    assert keys(cut(plan, times, 20, 1).chosen) == ["a", "a:clean"]  # nine seconds are left, of ten
    assert keys(cut(plan, times, 21, 1).chosen) == ["a", "a:clean", "a:near", "a:far", "a:worst"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("3600s", 3600), ("1.5h", 5400), ("1h30m", 5400), ("45 min", 2700), ("1d", 86400)],
)
def test_lengths_of_time(text: str, seconds: float):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0s", "2 hours", "1e3s", "nanh", "9999999999h", "2h!"])
def test_what_is_no_length_of_time(text: str):
    with pytest.raises(ValueError, match="expected a length of time"):
        read_duration(text)


STUDY = """name: small
dataset: digits
models:
  a: {arch: lenet5, train: {epochs: 5}}
  b: {arch: convnet3, train: {epochs: 5}}
attacks: [{name: clean}, {name: pgd, eps: 0.1, steps: 10}]
examples: 50
"""


@pytest.mark.slow
def test_a_budget_from_the_study_to_the_queue_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An epoch takes two seconds: a training fits into twelve seconds of one slot, two into those of two."""
    fix_rates(monkeypatch, lambda model: Rates(forwards=1000.0, gradients=500.0))
    path, url = tmp_path / "s.yaml", str(tmp_path / "r.db")
    path.write_text(STUDY)

    def states() -> dict[str, int]:
        with open_store(url).begin() as db:
            return {state: n for state, n in counts(db).items() if n}

    def budget(slots: int, seconds: float = 12.0) -> Budget:
        return Budget(seconds, f"{seconds:g}s", lambda jobs, gpus: Slots(slots, 1))

    told = json.loads(dry_run.dry_run(url, path, {}, as_json=True, budget=budget(1)))
    assert [row["fits"] for row in told["jobs"]] == [True] * 3 + [False] * 3
    assert told["total"]["slots"] == 1 and not Path(url).exists()
    _, found = study_sources.submit_file(url, path, {}, budget=budget(1))
    assert found.line.startswith("sweep small: 6 jobs, 6 of them new; 3 of them, 11 s of work, are left out of")
    assert states() == {"queued": 1, "blocked": 2, "cancelled": 3}
    _, found = study_sources.submit_file(url, path, {}, budget=budget(2))
    assert found.line == "sweep small: 6 jobs, 0 of them new, 3 that a budget had left out"
    assert states() == {"queued": 2, "blocked": 4}
    study_sources.submit_file(url, path, {}, budget=budget(1, 3.0))
    assert states() == {"cancelled": 6}
    assert study_sources.submit_file(url, path, {})[1].taken_in == 6
    assert states() == {"queued": 2, "blocked": 4}
    text = dry_run.dry_run(url, path, {}, as_json=False, budget=budget(1))
    assert text.splitlines()[-1] == "in the budget of 12s: 3 jobs, about 11 s; left out: 3 jobs, 11 s of work"


@pytest.mark.slow
def test_a_program_hears_how_many_a_budget_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fix_rates(monkeypatch, lambda model: Rates(forwards=1000.0, gradients=500.0))
    (tmp_path / "s.yaml").write_text(STUDY)
    typed = ["--store", str(tmp_path / "r.db"), "submit", str(tmp_path / "s.yaml"), "--json"]
    told = [json.loads(CliRunner().invoke(cli.main, typed + more).stdout) for more in (["--budget", "1s"], [])]
    assert told[0] == {"sweep": "small", "jobs": 6, "new": 6, "left_out": 6}
    assert told[1] == {"sweep": "small", "jobs": 6, "new": 0, "left_out": 0}


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_wrong_budget_is_refused_in_one_line(command: str):
    found = CliRunner().invoke(cli.main, [command, "s.yaml", "--budget", "2"], prog_name="robustq")
    assert found.exit_code == 2
    assert found.stderr.splitlines()[-1].endswith("expected a length of time such as 2h, 90m or 3600s, got '2'")
