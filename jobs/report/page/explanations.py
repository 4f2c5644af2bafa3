"""The section of explanations: how steady they are, under noise and attacks side by side, and their maps."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from robustlib.checks.thresholds import FAIL
from robustlib.metrics import CLEAN
from robustlib.number_text import counted, distinct
from robustlib.settings import EXPLANATION_ATTACK, NOISE
from robustq.jobs.errors import SpecError
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.explanation_maps import besides, kept_grid
from robustq.jobs.report.page.html_table import Cell, Table, cell, table_of, verdict_cell
from robustq.jobs.report.page.page_model import Explanations
from robustq.jobs.report.pictures.thumbnails import Data
from robustq.jobs.results.aggregate import rows_by
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.compare import Tested, tested
from robustq.jobs.results.explanations.stability import MAIN, in_order, method_names, stability_lines
from robustq.jobs.results.rows import artifact_of
from robustq.jobs.text.footnotes import numbered
from robustq.jobs.text.numbers import eps_text

ALPHA = 0.01  # below it an attack is said to do more than noise, or a model to be the steadier
MOST_GRIDS = 12
WORDS = {
    "top_intersection": "top pixels in common",
    "near_top_intersection": "the same, a pixel off",
    "spearman": "Spearman",
    "ssim": "SSIM",
    "deletion": "deletion, lower is better",
    "insertion": "insertion, higher is better",
}
FAULTS = {
    "constant-map": "the map is constant on most images",
    "random-weights": "the map hardly changes with randomised weights",
    "random-order": "its order of pixels is no better than a random one",
}
TEST = "Wilcoxon's signed-rank test on the same images"
HOW = (
    "Top pixels are the tenth, or the share that the study names, with the largest attributions. Noise is of the "
    "attacks' norm and size; p is of the difference between it and the attack on the explanation, by " + TEST
)

Jobs = list[list[ExplanationRow]]


def explanations(
    db: Connection, root: str, rows: Sequence[ExplanationRow], data: Data, cache: PageCache
) -> Explanations | None:
    """What the page says of explanations; None where there are none.

    root: the store's artifacts.  rows: of `explanation_rows`.  data: the test split, for the classes' names.
    cache: maps that were drawn before, filled by this call.
    """
    if not rows:
        return None
    jobs, apart = named_jobs(rows)
    told = {mine[0]["job_id"]: noise_and_attack(db, [mine]) for mine in jobs if mine[0]["verdict"] != FAIL}
    kept = [mine for mine in jobs if artifact_of(db, mine[0]["job_id"], "maps") is not None]
    return Explanations(
        answers=[*beyond_noise(db, jobs), *steadier_models(db, jobs)],
        distrusted=distrusted(jobs, apart),
        stability=stability_table(jobs, told),
        measures=measures_table([row for mine in jobs for row in mine]),
        grids=[found for mine in kept[:MOST_GRIDS] if (found := kept_grid(db, root, mine, data, cache, apart))],
        left_out=max(0, len(kept) - MOST_GRIDS),
    )


def named_jobs(rows: Sequence[ExplanationRow]) -> tuple[Jobs, list[str]]:
    """The rows of each job, methods called as in tables; and columns that tell jobs of a model and method apart."""
    called = method_names(rows)
    jobs = by_job([{**row, "method": called[row["recipe"]]} for row in rows])
    return jobs, heads_of([mine[0] for mine in jobs])[2:]


def by_job(rows: Sequence[ExplanationRow]) -> Jobs:
    return list(rows_by(rows, "sweep", "job_id").values())


def noise_and_attack(db: Connection, jobs: Jobs) -> Tested | None:
    """The top pixels in common under noise, and under the attack on the explanation, of the same images and networks;
    None where a study leaves one out, or the store lost the images' numbers. jobs: of one explanation, one a seed.
    """
    rows = [row for mine in jobs for row in mine if row[MAIN] is not None]
    by = {name: {row["seed"]: row for row in rows if row["against"] == name} for name in (NOISE, EXPLANATION_ATTACK)}
    try:
        return tested(db, by[NOISE], by[EXPLANATION_ATTACK]) if all(by.values()) else None
    except SpecError:
        return None


def beyond_noise(db: Connection, jobs: Jobs) -> Iterator[str]:
    """A sentence a model: does the attack do more than noise of the same size? Of several seeds each image has its
    mean; an explanation that failed a check for one of them is left out.
    """
    for (model,), rows in rows_by([mine[0] for mine in jobs], "model").items():
        tests: dict[tuple[Any, ...], Tested] = {}
        for key, mine in rows_by(rows, "method", "target", "norm", "eps", "recipe").items():
            numbers = {row["job_id"] for row in mine}
            found = (
                noise_and_attack(db, [job for job in jobs if job[0]["job_id"] in numbers]) if trusted(mine) else None
            )
            if found is not None:
                tests[key] = found
        if not tests:
            continue
        beyond = [test for test in tests.values() if test.told.p < ALPHA and test.told.difference < 0]
        if len(tests) == 1:
            ((key, test),) = tests.items()
            yes = "" if beyond else "no more than noise: "
            yield (
                f"On {model}, the explanation attack leaves {100 * test.told.second:.0f} % of the top pixels of "
                f"{with_class(*key[:2])} where they were, noise of the same size {100 * test.told.first:.0f} %: "
                f"{yes}{p_text(test.told.p)}, {images_text(test)}, {TEST}."
            )
            continue
        lowest, highest = (
            f"{100 * test.told.second:.0f} % (noise {100 * test.told.first:.0f} %)"
            for test in (min(tests.values(), key=share), max(tests.values(), key=share))
        )
        yield (
            f"On {model}, the explanation attack moves the top pixels more than noise of the same size in "
            f"{len(beyond)} of {len(tests)} explanations (p below {ALPHA}, {TEST}); "
            f"it leaves {lowest} to {highest} of them where they were."
        )


def trusted(rows: Sequence[ExplanationRow]) -> bool:
    """Whether no check failed, for any seed."""
    return all(row["verdict"] != FAIL for row in rows)


def with_class(method: str, target: str) -> str:
    """An explanation in a sentence: of the predicted class a map tells another thing than of the true one."""
    return f"{method} ({target} class)"


def images_text(test: Tested) -> str:
    return counted(test.told.n, "image") + (f", means over {test.seeds} seeds" if test.seeds > 1 else "")


def share(test: Tested) -> float:
    return test.told.second


def steadier_models(db: Connection, jobs: Jobs) -> Iterator[str]:
    """A sentence for each explanation and each model beside the first: which one's maps the attack moves less."""
    attacked = [row for mine in jobs for row in mine if row["against"] == EXPLANATION_ATTACK and row[MAIN] is not None]
    heads = ("method", "target", "norm", "eps", "recipe")
    for key, rows in rows_by(attacked, *heads).items():
        models = [(model, mine) for (model,), mine in rows_by(rows, "model").items() if trusted(mine)]
        for second, other in models[1:]:
            first, one = models[0]
            seeds = {row["seed"] for row in one} & {row["seed"] for row in other}
            if not seeds:
                continue
            pair = ({row["seed"]: row for row in some if row["seed"] in seeds} for some in (one, other))
            try:
                test = tested(db, *pair)
            except SpecError:  # the store lost an outcome, which its own rows tell
                continue
            told = test.told
            names = (first, second) if told.difference < 0 else (second, first)
            shares = sorted((told.first, told.second), reverse=True)
            apart = f"{names[0]} is the steadier" if told.p < ALPHA else "the two are not told apart"
            yield (
                f"Under the explanation attack at {key[2]} {eps_text(key[3])}, {with_class(*key[:2])} keeps "
                f"{100 * shares[0]:.0f} % of its top pixels on {names[0]} and {100 * shares[1]:.0f} % on {names[1]}: "
                f"{apart}, {p_text(told.p)}, {images_text(test)}, {TEST}."
            )


def p_text(p: float) -> str:
    return "p < 1e-4" if p < 1e-4 else f"p = {distinct((p, ALPHA), 2)[0]}"


def distrusted(jobs: Jobs, apart: Sequence[str]) -> list[str]:
    """Explanations whose sanity checks failed, and why."""
    return [
        f"{row['method']} of {row['model']} at {row['norm']} {eps_text(row['eps'])}{besides(row, apart)}: "
        f"{in_words(row['why'] or '')}"
        for row in (mine[0] for mine in jobs)
        if row["verdict"] == FAIL
    ]


def in_words(why: str) -> str:
    """The reasons of a row, those that are of explanations with what they mean."""
    parts = why.split("; ")
    return "; ".join(
        f"{FAULTS[name]} ({part})" if (name := part.partition(" ")[0]) in FAULTS else part for part in parts
    )


def heads_of(rows: Sequence[Any]) -> list[str]:
    """The columns that tell jobs apart."""
    return ["model", "method", *(name for name in ("target", "seed") if len({row[name] for row in rows}) > 1)]


def stability_table(jobs: Jobs, told: dict[int, Tested | None]) -> Table | None:
    """A line a model and method: top pixels in common under noise and attacks, and whether the attack does more."""
    firsts = [mine[0] for mine in jobs]
    names = [name for name in in_order([row["against"] for mine in jobs for row in mine]) if name != CLEAN]
    marks, notes = numbered([row["why"] if row["verdict"] == FAIL else None for row in firsts])
    lines = []
    for mine, mark in zip(jobs, marks, strict=True):
        row, by = mine[0], {one["against"]: one for one in mine}
        line: dict[str, Any] = {name: row[name] for name in heads_of(firsts)}
        line |= {"norm": row["norm"], "eps": Cell(eps_text(row["eps"]), row["eps"])}
        line |= {f"{name} %": share_cell(by.get(name), row["verdict"]) for name in names}
        test = told.get(row["job_id"])
        line["attack beside noise, p"] = (
            None if test is None else Cell(p_text(test.told.p)[1:].lstrip(" ="), test.told.p)
        )
        if (attacked := by.get(EXPLANATION_ATTACK)) is not None:
            line["class kept"] = Cell(f"{attacked['kept']} of {attacked['n']}", attacked["kept"])
        lines.append(line | {"checks": verdict_cell(row["verdict"]), "why": mark})
    if not notes:
        lines = [{name: value for name, value in line.items() if name != "why"} for line in lines]
    caption = "Top pixels in common with the map of the clean image, in percent of them, with the 95 % interval"
    return table_of("stability", caption, lines, live=len(lines) > 12, notes=[HOW + ".", *notes])


def share_cell(row: ExplanationRow | None, verdict: str | None) -> Cell:
    """A mean in percent with its interval, marked where the explanation is not to be trusted."""
    if row is None or (value := row[MAIN]) is None:
        return Cell("")
    low, high = row["top_intersection_low"], row["top_intersection_high"]
    ends = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    if verdict == FAIL:
        return Cell(f"not trusted ({100 * value:.0f})", value, "fail")
    return Cell(f"{100 * value:.1f}{ends}", value)


def measures_table(rows: Sequence[ExplanationRow]) -> Table | None:
    """A line for each job and measure."""
    names = in_order([row["against"] for row in rows])
    heads = heads_of(rows)
    lines = [
        {name: line.job[name] for name in heads}
        | {"norm": line.job["norm"], "eps": Cell(eps_text(line.job["eps"]), line.job["eps"])}
        | {"measure": WORDS[line.measure]}
        | {name: cell(None) if (found := line.cells.get(name)) is None else Cell(f"{found.value:.3f}", found.value)
           for name in names}
        for line in stability_lines(rows)
    ]  # fmt: skip
    return table_of("measures", "All measures, means over images", lines, live=True)
