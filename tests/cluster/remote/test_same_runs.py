"""Which runs on a cluster are the same, with no cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustq.cluster.remote.ray_jobs_api import Cluster, submit_study

STUDY = """
name: far
models: {a: {arch: lenet5, train: {epochs: 3}}}
attacks: [{name: pgd, eps: 0.1}]
"""


class Stub(Cluster):
    """A cluster that only remembers what was sent."""

    def __init__(self, store: str):
        self.insecure, self.store, self.sent = False, store, {}

    def runs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=SimpleNamespace(value=s)) for name, s in self.sent.items()]

    def send(self, command: str, folder: Path, name: str, about: dict[str, str]) -> str:
        assert name not in self.sent
        self.sent[name] = "RUNNING"
        return name


@pytest.mark.slow
def test_other_options_or_another_store_are_another_run(tmp_path: Path):
    (tmp_path / "far.yaml").write_text(STUDY)
    cluster = Stub("one.db")

    def send(*options: str) -> tuple[str, str]:
        return submit_study(cluster, tmp_path / "far.yaml", options)

    first, said = send()
    assert (said, send()) == ("sent", (first, "runs already"))
    second, said = send("--examples", "all")
    assert said == "sent" and second != first
    cluster.store = "two.db"
    third, said = send("--examples", "all")
    assert said == "sent" and third not in (first, second)
    cluster.sent[third] = "FAILED"
    assert send("--examples", "all") == (f"{third}-2", "sent")
    assert send("--examples", "all") == (f"{third}-2", "runs already")
    del cluster.sent[third]  # forgotten there
    cluster.sent[f"{third}-2"] = "STOPPED"
    assert send("--examples", "all") == (third, "sent")
