"""The table of a paper: means and spreads, the best in bold, what is not told apart from it, and the protocol."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from robustq import cli
from robustq.jobs.paper.latex import mark, pathless
from robustq.jobs.specs import AttackSpec
from robustq.jobs.store.connection import Store
from tests.helpers.fake_results import add_result, add_sweep, of_attack, outcome

EPS = 8 / 255
N = 200
# Right of 200 images by model and seed; what is right is so for all seeds of the model, and for all better models.
RIGHT = {"a_plain": (20, 24, 22), "b-trades": (120, 124, 128), "c-pgd": (118, 124, 124)}


def robust(right: int) -> dict[str, np.ndarray]:
    success = np.arange(N) >= right
    return outcome(0, n=N) | {
        "success": success,
        "distance": np.where(success, 0.01, np.nan).astype(np.float32),
        "broken_by": np.where(success, "pgd", ""),
        "clean_correct": (np.arange(N) < 180).astype(np.float32),
        "adversarial_correct": (~success).astype(np.float32),
    }


@pytest.fixture
def seeds(made_up: Store) -> Store:
    place = "csv:/home/someone/secret folder/images.csv".replace(" folder", "")
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        spec = of_attack(AttackSpec(name="pgd", norm="Linf", eps=EPS, params={"steps": 20}))
        for model, right in RIGHT.items():
            for seed, n in enumerate(right):
                add_result(db, sweep_id, model, "pgd", EPS, seed, columns=robust(n), dataset=place, **spec)
                more = {"columns": robust(0), "dataset": place, "norm": "L2", "verdict": "fail" if seed else None}
                add_result(db, sweep_id, model, "square", 0.5, seed, **more)
    return made_up


def printed(store: Store, *words: str) -> str:
    ran = CliRunner().invoke(
        cli.main, ["--store", store.url, "results", "--over-seeds", "--pivot", "--format", "latex", *words]
    )
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_the_table_of_a_paper(seeds: Store):
    text = printed(seeds)
    table, sentence = text.strip().split("\n\n")
    lines = table.splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrrr}", r"\toprule"] and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[2:5] == [
        r"model & clean & pgd & square \\",
        r" &  & $\ell_\infty$, $8/255$ & $\ell_2$, $0.5$ \\",
        r"\midrule",
    ]
    means = {model: 100 * np.mean(right) / N for model, right in RIGHT.items()}
    spreads = {model: 100 * np.std(right, ddof=1) / N for model, right in RIGHT.items()}
    cells = {line.split(" & ")[0]: line.removesuffix(r" \\").split(" & ")[1:] for line in lines[5:-2]}
    best, alike, worse = (rf"{means[m]:.1f}" for m in ("b-trades", "c-pgd", "a_plain"))
    assert cells["b-trades"][1] == rf"\textbf{{{best}}} $\pm$ {spreads['b-trades']:.1f}"
    assert cells["c-pgd"][1] == rf"{alike} $\pm$ {spreads['c-pgd']:.1f}$^{{\dagger}}$"
    assert cells[r"a\_plain"][1] == rf"{worse} $\pm$ {spreads['a_plain']:.1f}"
    assert {row[0] for row in cells.values()} == {r"\textbf{90.0} $\pm$ 0.0"}  # all of equals
    assert {row[2] for row in cells.values()} == {"--$^{a}$"}
    for part in (
        "Accuracy in percent on 200 images of csv:images.csv",
        r"mean $\pm$ standard deviation ($n-1$) over 3 seeds (0, 1 and 2)",
        r"pgd(steps=20), $\ell_\infty$, $\varepsilon$ = $8/255$",
        r"at the 5\,\% level (t-test over 3 and 3 seeds and the same images; Holm's correction",
        "Numbers that a check distrusts are not shown (a: its checks were not kept)",
        "robustq 0.0.9 (kernels 3) with PyTorch 2.14",
    ):
        assert part in sentence, sentence
    assert "/home" not in text and "secret" not in text


def test_it_is_latex_in_principle(seeds: Store):
    """Braces and dollars pair, every line has a cell a column, and nothing special stands unescaped."""
    table, sentence = printed(seeds).strip().split("\n\n")
    columns = re.match(r"\\begin\{tabular\}\{([lr]+)\}", table)
    assert columns is not None
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 + len(RIGHT)
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1 for line in rows)
    for text in (table, sentence):
        assert text.isascii()
        depth = 0
        for brace in re.findall(r"(?<!\\)[{}]", text):
            depth += 1 if brace == "{" else -1
            assert depth >= 0
        assert depth == 0
        assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
        outside = re.sub(r"\$[^$]*\$", "", text)
        assert not re.search(r"(?<!\\)[_^#%~<>|]", outside.replace("\\,", ""))
    assert not re.search(r"(?<!\\)&", sentence)


def test_of_one_seed_the_images_are_compared_exactly(made_up: Store):
    """One image in 200 is no finding, eight are: 2 / 2^8 by McNemar's test."""
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for model, right in (("best", 100), ("near", 99), ("far", 92)):
            add_result(db, sweep_id, model, "pgd", EPS, columns=robust(right))
    text = printed(made_up)
    assert r"\textbf{50.0} \\" in text and r"49.5$^{\dagger}$ \\" in text and r"46.0 \\" in text
    assert "one seed (0)" in text and "McNemar's exact test on the same images; Holm's" in text
    assert r"\pm" not in text


def test_it_is_sorted_as_a_pivot_is(seeds: Store):
    def models(*words: str) -> list[str]:
        return [line.split(" & ")[0] for line in printed(seeds, *words).splitlines()[5:8]]

    assert models() == [r"a\_plain", "b-trades", "c-pgd"]
    assert models("--sort", "-pgd Linf 8/255") == ["b-trades", "c-pgd", r"a\_plain"]
    assert models("--sort", "-model") == ["c-pgd", "b-trades", r"a\_plain"]
    words = ["--store", seeds.url, "results", "--over-seeds", "--pivot", "--format", "latex", "--sort", "nope"]
    ran = CliRunner().invoke(cli.main, words)
    assert ran.exit_code == 2 and "there is no column 'nope'" in ran.stderr


def test_means_that_rounding_tells_apart_are_both_the_best(made_up: Store):
    """(0.80 + 0.84) / 2 is not 0.82 for a computer."""
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for model, counts in (("one", (164, 164)), ("other", (160, 168))):
            for seed, right in enumerate(counts):
                add_result(db, sweep_id, model, "pgd", EPS, seed, columns=robust(right))
    text = printed(made_up)
    assert text.count(r"\textbf{82.0}") == 2 and r"\dagger" not in text
    words = ["--store", made_up.url, "results", "--over-seeds", "--best", "robust_accuracy", "--json"]
    found = json.loads(CliRunner().invoke(cli.main, words).stdout)
    assert [row["model"] for row in found] == ["one", "other"]
    assert found[0]["robust_accuracy"] != found[1]["robust_accuracy"]


def test_each_reason_has_a_mark_of_its_own():
    assert [mark(i) for i in (0, 25, 26, 27, 701, 702)] == ["a", "z", "aa", "ab", "zz", "aaa"]


def test_a_name_that_nobody_has_is_told(seeds: Store):
    words = ["--store", seeds.url, "results", "--over-seeds", "--pivot", "--format", "latex", "--model", "c-pdg"]
    ran = CliRunner().invoke(cli.main, words)
    assert "no result has model c-pdg, there are: a_plain, b-trades, c-pgd" in ran.stderr


def test_a_table_of_nothing_says_so(made_up: Store):
    assert printed(made_up) == "nothing to show\n"


def test_other_forms_have_the_spread_too(seeds: Store):
    def asked(*words: str) -> str:
        ran = CliRunner().invoke(cli.main, ["--store", seeds.url, "results", "--over-seeds", "--pivot", *words])
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    table = asked("--attack", "pgd")
    assert f"{100 * np.mean(RIGHT['c-pgd']) / N:.1f} ± {100 * np.std(RIGHT['c-pgd'], ddof=1) / N:.1f}" in table
    assert table.splitlines()[-1] == "± is the standard deviation over seeds (n - 1)"
    head = asked("--attack", "pgd", "--format", "csv").splitlines()[0]
    assert head == "model,pgd Linf 8/255,pgd Linf 8/255 sd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/nets/net.py:build", "net.py:build"),
        ("../nets/net.py:build", "net.py:build"),
        ("imagefolder:data/mine", "imagefolder:mine"),
        ("csv:~/x/images.csv (stratified)", "csv:images.csv (stratified)"),
        ("pgd(steps=10)", "pgd(steps=10)"),
        ("8/255", "8/255"),
        ("autoattack-standard/1", "autoattack-standard/1"),
    ],
)
def test_no_folder_is_in_a_paper(text: str, expected: str):
    assert pathless(text) == expected
