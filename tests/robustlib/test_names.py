"""What is said of a name that there is not."""

from pathlib import Path

import pytest

from robustlib.arguments import NORMS
from robustlib.names import did_you_mean, near_file, unknown

KNOWN = ["clean", "fgsm", "pgd", "apgd-ce", "apgd-dlr", "fab", "fab-t", "square"]


@pytest.mark.parametrize(
    "name, known, words",
    [
        ("pdg", KNOWN, ": did you mean 'pgd'?"),
        ("PGD", KNOWN, ": did you mean 'pgd'?"),
        ("apgd_ce", KNOWN, ": did you mean 'apgd-ce'?"),
        ("apgd", KNOWN, ": did you mean 'pgd'?"),
        ("cifar11", ["cifar10", "cifar100", "svhn"], ": did you mean 'cifar10' or 'cifar100'?"),
        ("linf", NORMS, ": did you mean 'Linf'?"),
        ("l2", NORMS, ": did you mean 'L2'?"),
        ("L3", NORMS, ""),
        ("carlini", KNOWN, ""),
        ("", KNOWN, ""),
        ("pgd" * 1000, KNOWN, ""),
        (7, KNOWN, ""),
        (None, [], ""),
    ],
)
def test_only_a_near_name_is_suggested(name: object, known: list[str], words: str):
    assert did_you_mean(name, known) == words


def test_a_file_of_the_same_kind_beside_it_is_suggested(tmp_path: Path):
    for name in ("quickstart.yaml", "quickstart.py", "other.yaml"):
        (tmp_path / name).write_text("")
    assert near_file(tmp_path / "quikstart.yaml") == f": did you mean '{tmp_path}/quickstart.yaml'?"
    assert near_file(tmp_path / "none.yaml") == near_file(tmp_path / "no" / "s.yaml") == near_file(Path("a\0b")) == ""


def test_a_refusal_names_all_and_the_one_that_was_meant():
    assert unknown("norm", "linf", NORMS) == "unknown norm 'linf', expected one of: Linf, L2, L1: did you mean 'Linf'?"
    assert unknown("loss", "hinge", ["ce", "dlr"]) == "unknown loss 'hinge', expected one of: ce, dlr"
