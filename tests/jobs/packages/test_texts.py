"""What `robustq package` says of a program beside its network."""

from types import SimpleNamespace
from typing import Any

import pytest

from robustq.jobs.packages.texts import judged_text


def row(what: str, differing: list[int], network: float | None) -> Any:
    return SimpleNamespace(
        what=what, program=SimpleNamespace(accuracy=0.57, n=100), network_accuracy=network, differing=differing
    )


@pytest.mark.parametrize(
    ("judged", "line"),
    [
        (row("clean", [], 0.57), "57.0 % of 100, the network 57.0 %, 0 images differ"),
        (row("transfer", [4], 0.58), "57.0 % of 100, the network 58.0 %, 1 image differs"),
        # The network met other attacks: that the two accuracies differ says nothing of the program.
        (
            row("square", [4], 0.42),
            "57.0 % of 100; all stored attacks leave the network 42.0 %, and 1 image fell to Square alone",
        ),
        (row("square", [], None), "57.0 % of 100"),
    ],
)
def test_a_program_is_told_beside_its_network(judged: Any, line: str):
    assert judged_text(judged) == line
