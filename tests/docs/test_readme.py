"""What README.md says from Python and of attacks is so."""

import re
from pathlib import Path

import pytest
import torch

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.metrics import wilson

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BESIDE = "../" + "shared"  # what lies beside the checkout of the project's own machine
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
def test_the_lines_from_python_give_what_they_say():
    """On a linear model, whose answer is known: a step of eps against each weight takes eps times their sum off the
    margin between two classes.
    """
    (code,) = re.findall(r"```python\n(from robustlib.evaluation.*?)```", README, re.S)
    generator = torch.Generator().manual_seed(0)
    x = 0.1 + 0.8 * torch.rand(200, 1, 4, 4, generator=generator)  # so far from the box that only the ball counts
    weight = torch.tensor([1.0, -1.0, 0.5, -0.5] + 12 * [0.0])
    linear = torch.nn.Linear(16, 10)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(-100)
        linear.bias[:2] = 0
        linear.weight[0], linear.weight[1] = weight / 2, -weight / 2
        linear.bias[1] = (x.flatten(1) @ weight).median()
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    y = model(x).argmax(1)
    names: dict = {"model": model, "x": x, "y": y}
    exec(code, names)

    margin = (x.flatten(1) @ weight - linear.bias[1].item()).abs()
    robust = margin > 0.1 * weight.abs().sum()
    found = names["found"]
    low, high = found.interval
    assert 0.02 < robust.float().mean() < 0.98
    assert (found.summary["n"], found.clean_accuracy) == (200, 1)
    assert found.robust_accuracy == pytest.approx(robust.float().mean().item())
    assert (low, high) == wilson(robust.sum().item(), 200) and low < found.robust_accuracy < high
    assert found.outcome.success.tolist() == (~robust).tolist()
    assert set(found.outcome.broken_by) == {"", "pgd"} and found.outcome.distance.shape == (200,)
    assert found.x_adv.shape == x.shape and found.verdict in ("pass", "warn")


def test_the_table_of_attacks_is_the_registry():
    table = README.partition("## Attacks")[2].partition("\n## ")[0]
    known: dict[str, set[str]] = {}
    for row in re.findall(r"(?m)^\| (`.*)\|$", table):
        names, norms, access, paper = (cell.strip() for cell in row.split(" | "))
        assert set(access.split(", ")) <= {"gradients", "scores", "labels"} and paper
        known |= {name: set(norms.split(", ")) for name in re.findall(r"`([\w-]+)`", names)}
    assert known.keys() == (ATTACKS.keys() | ENSEMBLES.keys()) - {"clean", "corruption"}
    assert known == {name: set({**ATTACKS, **ENSEMBLES}[name].norms) for name in known}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_what_a_reader_does_not_have(page: Path):
    assert BESIDE not in page.read_text()


def test_no_code_names_a_folder_beside_the_repository():
    """Real data comes from ROBUSTQ_TEST_DATA, which .ci/run sets."""
    folders = ("benchmarks", "cluster", "jobs", "robustlib", "studies", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".yaml")]
    files += [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    assert [str(path) for path in files if BESIDE in path.read_text()] == []


def test_no_page_is_out_of_reach():
    """Every page of docs/ can be come to from README.md."""
    found, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        todo += [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert {page.resolve() for page in PAGES} <= found
