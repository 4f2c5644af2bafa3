"""The check of a bundle: its hashes, whether its numbers follow from its outcomes, and a sample that runs again."""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robustlib.checks.thresholds import LIMITS, CheckResult, check_result, overall
from robustlib.metrics import summarise
from robustlib.number_text import counted
from robustq.jobs.queue.worst_case import summary, worst_case
from robustq.jobs.queue.worst_case import verdict_of as worst_verdict
from robustq.jobs.specs import EvalSpec, WorstSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.explanations import measures
from robustq.jobs.text.canonical_json import canonical, without_places
from robustq.jobs.text.safe_text import brief
from robustq.jobs.verification.bundle_columns import columns_differ
from robustq.jobs.verification.bundle_format import JOBS, MOST_BYTES, RESULTS, Bundle, Refused
from robustq.jobs.verification.bundled_explanations import images_of, measures_differ
from robustq.jobs.verification.bundled_jobs import (
    BundledJob,
    Checked,
    How,
    from_lines,
    outcome_name,
    read_outcomes,
    rows_csv,
    schema_of,
)

CLOSE = 1e-9  # relative: another processor may sum up a mean in another order


@dataclass
class Found:
    """What a check of a bundle found.

    tampered: files that are not what the manifest says, each with what became of it.  contradictions: what does not
    follow from the rest, a line each.  replayed: rows of `replay`.  left_out: why evaluations that were drawn could not
    run here, and of how many that holds.
    """

    fingerprint: str
    sweep: str
    robustq: str
    kernel: str
    states: dict[str, int]
    files: int
    evaluations: int = 0
    tampered: list[tuple[str, str]] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    replayed: list[Any] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """How many things are not as they should be."""
        from robustq.jobs.verification.replay import count_wrong

        return len(self.tampered) + len(self.contradictions) + (count_wrong(self.replayed) if self.replayed else 0)


def check_bundle(
    path: Path,
    how: How,
    *,
    most_bytes: int = MOST_BYTES,
    fingerprint: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Found:
    """Check a bundle, and run a sample of its evaluations again where its files are whole and agree.

    fingerprint: that it must have.  Raises Refused for what is no bundle, not that one, or not to be unpacked: then
    nothing was written.
    """
    bundle = Bundle(path, most_bytes=most_bytes)
    try:
        if fingerprint is not None and bundle.fingerprint != fingerprint.strip().lower():
            raise Refused(f"{path} is another bundle: expected the fingerprint {fingerprint}, got {bundle.fingerprint}")
        about = bundle.manifest
        found = Found(bundle.fingerprint, about.sweep, about.robustq, about.kernel, about.states, len(about.files))
        found.tampered = list(bundle.tampered())
        if any(name == JOBS for name, _ in found.tampered):
            return found
        if JOBS not in bundle.members:
            found.tampered.append((JOBS, "missing"))
            return found
        try:
            jobs = from_lines(bundle.read(JOBS))
        except ValueError as error:
            found.contradictions.append(f"{JOBS} cannot be read: {error}")
            return found
        found.evaluations = sum(one.kind == "eval" for one in jobs)
        spoilt = {name for name, _ in found.tampered}
        found.contradictions = list(contradictions(bundle, jobs, spoilt))
        if not found.wrong and how.number:
            from robustq.jobs.verification.bundle_replay import replay_sample

            with tempfile.TemporaryDirectory() as folder:
                found.replayed, found.left_out, failed = replay_sample(bundle, jobs, Path(folder), how, tell)
                found.contradictions += failed
        return found
    finally:
        bundle.close()


def contradictions(bundle: Bundle, jobs: Sequence[BundledJob], spoilt: set[str]) -> Iterator[str]:
    """What does not follow from the rest, a line each. spoilt: files that are known to be others."""
    by_key = {one.key: one for one in jobs}
    outcomes: dict[str, pa.Table] = {}
    if RESULTS not in spoilt and (RESULTS not in bundle.members or bundle.read(RESULTS) != rows_csv(jobs)):
        yield f"{RESULTS} does not say what {JOBS} says"
    for one in jobs:
        name = outcome_name(one.key)
        if not one.has_its_key():
            yield f"{one.told}: its key {one.key[:12]} is not that of its spec"
        yield from columns_differ(one, by_key)
        for key in sorted({*one.needs, *trainings(one)}):
            if key not in by_key:
                yield f"{one.told}: it rests on a job {key[:12]}, which is not in the bundle"
        for left in one.artifacts.values():
            stored = f"artifacts/{left.sha256}"
            if stored not in bundle.members or bundle.manifest.files[stored].sha256 != left.sha256:
                yield f"{one.told}: its weights {left.sha256[:12]} are not in the bundle"
        if one.kind == "train" and "weights" not in one.artifacts:
            yield f"{one.told}: it has no weights"
        if verdict_of(one) != one.result.verdict and one.kind == "eval":
            yield f"{one.told}: its verdict {one.result.verdict} is not that of its checks"
        for check in one.checks:
            yield from judged_otherwise(one, check)
        if not one.outcomes and one.kind in ("eval", "worst"):
            yield f"{one.told}: it has no outcomes that its numbers follow from"
        if not one.outcomes or name in spoilt:
            continue
        if name not in bundle.members:
            yield f"{one.told}: its outcomes are not in the bundle"
            continue
        try:
            outcomes[one.key] = read_outcomes(bundle.read(name), schema_of(one))
            if one.explains:
                columns = measures.to_columns(outcomes[one.key])
                yield from images_differ(one, images_of(columns))
                yield from measures_differ(one, columns)
                continue
            columns = example_outcomes.to_columns(outcomes[one.key])
            yield from images_differ(one, columns)
            yield from differences(one, columns)
        except (ValueError, ZeroDivisionError) as error:
            yield f"{one.told}: {name} holds no outcomes ({error})"
            outcomes.pop(one.key, None)
    yield from other_images(jobs, outcomes)
    for one in jobs:
        spec = one.parsed
        if isinstance(spec, WorstSpec) and one.key in outcomes and all(key in outcomes for key in spec.evals):
            yield from worst_differs(one, spec, outcomes)
            yield from worst_judged_otherwise(one, [by_key[key] for key in spec.evals])


def trainings(one: BundledJob) -> Iterator[str]:
    """Keys of the trainings whose weights an evaluation has."""
    spec = one.parsed
    if isinstance(spec, EvalSpec):
        yield from filter(None, (spec.train, spec.attack.surrogate and spec.attack.surrogate.train))


def judged_otherwise(one: BundledJob, check: Checked) -> Iterator[str]:
    """A check whose verdict is not that of its value, where this robustq has the threshold that it was held against."""
    if check.name in LIMITS and check.value is not None:  # which stands for what is no number, too
        by_value = check_result(check.name, check.value)
        if check.threshold == by_value.threshold and check.verdict != by_value.verdict:
            yield f"{one.told}: its check {check.name} is {brief(check.verdict)} with a value of {check.value}"


def images_differ(one: BundledJob, columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Outcomes that are not one of each example that was asked for."""
    spec, index = one.parsed, columns["index"]
    if len(np.unique(index)) < len(index):
        yield f"{one.told}: an example is in its outcomes twice"
    if isinstance(spec, EvalSpec) and spec.examples != "all" and len(index) > spec.examples:
        yield f"{one.told}: it has outcomes of {counted(len(index), 'example')}, its spec asks for {spec.examples}"


def verdict_of(one: BundledJob) -> str | None:
    """What the job's checks come to; its own verdict where this robustq does not know one of them."""
    try:
        return one.result.verdict if (rows := checks_of(one)) is None else overall(rows) if rows else None
    except ValueError:  # a verdict that is none
        return ""


def checks_of(one: BundledJob) -> list[CheckResult] | None:
    """The job's checks; None where this robustq does not know one of them."""
    if any(check.name not in LIMITS for check in one.checks):
        return None
    return [
        CheckResult(check.name, check.value, check.threshold or 0.0, check.verdict, check.note) for check in one.checks
    ]


def worst_judged_otherwise(one: BundledJob, parts: Sequence[BundledJob]) -> Iterator[str]:
    """A worst case whose verdict is not that of its checks and its evaluations."""
    verdicts = [part.result.verdict for part in parts if part.result.verdict is not None]
    try:
        rows = checks_of(one)
        same = rows is None or worst_verdict(rows, verdicts)["verdict"] == one.result.verdict
    except ValueError:
        same = False
    if not same:
        yield f"{one.told}: its verdict {one.result.verdict} is not that of its checks and evaluations"


def differences(one: BundledJob, columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Numbers of a row that do not follow from its outcomes."""
    numbers = summary(dict(columns)) if one.kind == "worst" else summarise(columns)
    for name, value in numbers.items():
        stored = getattr(one.result, name)
        same = (
            value == stored
            if value is None or stored is None
            else math.isclose(value, stored, rel_tol=CLOSE, abs_tol=CLOSE)
        )
        if not same:
            yield f"{one.told}: {name} is {stored}, its outcomes come to {value}"


def other_images(jobs: Sequence[BundledJob], outcomes: Mapping[str, pa.Table]) -> Iterator[str]:
    """Evaluations of as many examples of the same data as others that do not have the same ones."""
    first: dict[str, tuple[BundledJob, set[int]]] = {}
    for one in jobs:
        spec = one.parsed
        if isinstance(spec, EvalSpec) and one.key in outcomes:
            asked = canonical(
                [without_places(spec.data.model_dump(mode="json")), spec.examples, spec.choose, spec.seed]
            )
            mine = set(outcomes[one.key].column("index").to_pylist())
            other, theirs = first.setdefault(asked, (one, mine))
            if mine != theirs:
                yield f"{one.told}: its outcomes are of other examples than those of {other.told}"


def worst_differs(one: BundledJob, spec: WorstSpec, outcomes: Mapping[str, pa.Table]) -> Iterator[str]:
    """Whether a worst case is that of its evaluations, as the driver computes it: in the order of their keys."""
    try:
        found = worst_case([outcomes[key] for key in sorted(spec.evals)], spec.eps)
    except ValueError as error:
        yield f"{one.told}: it is no worst case of its evaluations ({error})"
        return
    stored = example_outcomes.to_columns(outcomes[one.key])
    for name, values in found.items():
        if not np.array_equal(values, stored[name], equal_nan=values.dtype.kind == "f"):
            yield f"{one.told}: its outcomes are not the worst of its evaluations ({name})"
            return
