"""Every result says by which release it was computed; no key does, so a later release computes none again."""

from importlib.metadata import version
from pathlib import Path

import pytest

from robustlib import KERNEL_VERSION, VERSION
from robustq.jobs.queue import shards
from robustq.jobs.queue.status import counts
from robustq.jobs.results.rows import result_rows
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit
from tests.helpers.drain_queue import work_off, worked_off

STUDY = {
    "name": "s",
    "models": {"a": {"arch": "lenet5", "train": {"epochs": 1, "examples": 100, "validation_examples": 50}}},
    "attacks": [{"name": "fgsm", "eps": 0.1}, {"name": "pgd", "eps": 0.1, "steps": 2}],
    "examples": 20,
}
ATTACKS = ("fgsm", "pgd", "worst-case")


def test_the_release_is_that_of_the_package():
    assert version("robustq") == VERSION


@pytest.mark.slow
def test_rows_say_their_release_and_a_later_one_computes_none_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = worked_off(tmp_path / "s", STUDY)
    for name in ("robustlib", "robustq.jobs.running.context", "robustq.jobs.queue.worst_case"):
        monkeypatch.setattr(f"{name}.VERSION", "99.0")
    with store.begin() as db:
        before = result_rows(db)
    assert {row["attack"]: row["versions"]["robustq"] for row in before} == dict.fromkeys(ATTACKS, VERSION)
    assert {row["versions"]["kernel"] for row in before} == {KERNEL_VERSION}

    def again(study: dict) -> int:
        given = Study.model_validate(study), Origin("s", {}, {}), tmp_path / "s"
        opened, done = submit(f"{tmp_path}/s/r.db", *given, data_folder=tmp_path / "s")
        opened.engine.dispose()
        return done.new

    assert again(STUDY) == 0 and again(STUDY | {"name": "another"}) == 0
    assert again(STUDY | {"attacks": [*STUDY["attacks"], {"name": "fgsm", "norm": "L2", "eps": 1}]}) == 1
    work_off(store)
    with store.begin() as db:
        after = {(row["attack"], row["norm"]): row["versions"]["robustq"] for row in result_rows(db)}
        assert counts(db)["done"] == 5  # the training too
    assert after == {(attack, "Linf"): VERSION for attack in ATTACKS} | {("fgsm", "L2"): "99.0"}
    store.engine.dispose()


def test_shards_of_several_releases_name_each():
    found = shards.joined([{"torch": "2"}, {"torch": "2", "robustq": "0.1"}, {"torch": "2", "robustq": "0.2"}])
    assert found == {"torch": "2", "robustq": "0.1; 0.2"}
