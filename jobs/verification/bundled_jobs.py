"""Finished jobs as a bundle has them: a record each, and the outcomes of single examples as CSV."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import csv
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustlib import KERNEL_VERSION
from robustlib.settings import EXPLAIN
from robustq.jobs.specs import AnySpec, EvalSpec, ModelSpec, TrainSpec, parse
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.explanations import measures
from robustq.jobs.text.canonical_json import canonical
from robustq.jobs.text.tables import csv_text
from robustq.jobs.verification.bundle_format import HASH

KINDS = ("train", "eval", "worst", "probe")  # shards are merged: the evaluation that they are of has all of theirs
SHOWN = (
    "model", "arch", "defence", "dataset", "attack", "norm", "eps", "seed", "recipe", "n", "clean_accuracy",
    "clean_accuracy_low", "clean_accuracy_high", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high",
    "any_draw_accuracy", "verdict", "distance_median", "distance_median_low", "distance_median_high", "distance_mean",
    "queries", "queries_most", "seconds", "device", "versions", "recorded_at", "key",
)  # fmt: skip


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(Record):
    """The columns of `result`, without the job's number and fence."""

    n: int
    clean_accuracy: float | None
    clean_accuracy_low: float | None
    clean_accuracy_high: float | None
    robust_accuracy: float | None
    robust_accuracy_low: float | None
    robust_accuracy_high: float | None
    any_draw_accuracy: float | None
    verdict: str | None
    distance_median: float | None
    distance_median_low: float | None
    distance_median_high: float | None
    distance_mean: float | None
    queries: int | None
    queries_most: int | None
    seconds: float
    device: str
    versions: dict[str, Any]
    extra: dict[str, Any] | None
    recorded_at: float


class Checked(Record):
    """A row of `check_result`."""

    name: str
    value: float | None
    threshold: float | None
    verdict: str
    note: str
    examples: list[int]


class Audited(Record):
    """A row of `audit`."""

    subject: str
    norm: str
    eps: float
    robust_accuracy: float
    verdict: str


class Left(Record):
    """A file that the job left behind."""

    sha256: str = Field(pattern=f"^{HASH}$")
    bytes: int


class BundledJob(Record):
    """One finished job. needs: keys of those that it rests on.  outcomes: whether it has a file of outcomes.

    The rest as in the tables of jobs/store/schema.py.
    """

    key: str = Field(pattern=f"^{HASH}$")
    kind: str
    spec: dict[str, Any]
    model: str
    arch: str | None
    defence: str | None
    dataset: str | None
    attack: str | None
    norm: str | None
    eps: float | None
    seed: int
    recipe: str | None
    subject: str | None
    bundle_key: str
    cost: float
    needs: list[str]
    result: Measured
    checks: list[Checked]
    audit: Audited | None
    outcomes: bool
    artifacts: dict[str, Left]

    @property
    def parsed(self) -> AnySpec:
        return parse(self.spec)

    @property
    def explains(self) -> bool:
        """Whether its outcomes are measures of explanations."""
        return self.kind == "eval" and self.attack == EXPLAIN

    @property
    def told(self) -> str:
        """The job in words."""
        at = "" if self.eps is None else f" {self.norm} {self.eps:.4g}"
        under = f" under {self.attack}{at}" if self.attack else f" ({self.kind})"
        return f"{self.model}{under}, seed {self.seed}"

    def models(self) -> list[ModelSpec]:
        """The models that the job builds: its own, and the one that its images are made on."""
        spec = self.parsed
        found = [spec.model] if isinstance(spec, TrainSpec | EvalSpec) else []
        surrogate = spec.attack.surrogate if isinstance(spec, EvalSpec) else None
        return found + ([] if surrogate is None else [surrogate.model])

    def has_its_key(self) -> bool:
        """Whether the key is the spec's, as the kernels of the result or earlier ones made it."""
        spec = self.parsed
        known = [str(self.result.versions.get("kernel")), *(str(n) for n in range(int(KERNEL_VERSION), 0, -1))]
        return any(spec.key(kernel) == self.key for kernel in known)


@dataclass(frozen=True)
class How:
    """How evaluations of a bundle run again. number: of them, drawn by `seed`.  dataset: where the data lie here, as a
    study names them; where the bundle's author had them if None.  trust_code: whether the bundle's code may run.
    """

    number: int = 1
    seed: int = 0
    threads: int = 1
    dataset: str | None = None
    trust_code: bool = False


def to_lines(jobs: Iterable[BundledJob]) -> bytes:
    """A line a job, by key."""
    ordered = sorted(jobs, key=lambda job: job.key)
    return "".join(json.dumps(job.model_dump(mode="json"), sort_keys=True) + "\n" for job in ordered).encode()


def from_lines(content: bytes) -> list[BundledJob]:
    """The reverse of `to_lines`. Raises ValueError for a line that is none, with its number."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            job = BundledJob.model_validate(json.loads(line))
            if job.kind not in KINDS or job.parsed.kind != job.kind:
                raise ValueError(f"it is of kind {job.kind!r}")
            found.append(job)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"line {number}: {where}: {first['msg']}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"line {number}: {type(error).__name__}: {str(error)[:200]}") from error
    keys = [job.key for job in found]
    if len(set(keys)) < len(keys):
        raise ValueError("a job is in it twice")
    return found


def rows_csv(jobs: Iterable[BundledJob]) -> bytes:
    """The results for people: a line an evaluation and a worst case."""
    told = [job for job in jobs if job.outcomes and not job.explains]
    rows = [job.model_dump(mode="json") | job.result.model_dump(mode="json") for job in told]
    ordered = sorted(
        rows, key=lambda row: canonical([row[name] for name in ("model", "attack", "norm", "eps", "seed", "key")])
    )
    return (csv_text(ordered, SHOWN) + "\n").encode()


def outcomes_csv(table: pa.Table) -> bytes:
    """Per-example outcomes as CSV: every digit of a number, nothing for null."""
    sink = pa.BufferOutputStream()
    plain = table.cast(pa.schema([(f.name, plain_type(f.type)) for f in table.schema]))
    csv.write_csv(plain, sink, csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue().to_pybytes()


def plain_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind


def schema_of(job: BundledJob) -> pa.Schema:
    """Of what a job has of single images: outcomes, or measures of explanations."""
    return measures.SCHEMA if job.explains else example_outcomes.SCHEMA


def read_outcomes(content: bytes, schema: pa.Schema = example_outcomes.SCHEMA) -> pa.Table:
    """The reverse of `outcomes_csv`. Raises ValueError for what is none."""
    types = {field.name: plain_type(field.type) for field in schema}
    how = csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=True)
    try:
        table = csv.read_csv(io.BytesIO(content), csv.ReadOptions(use_threads=False), convert_options=how)
        columns = {name: table.column(name) for name in types}
        for field in schema:
            if pa.types.is_dictionary(field.type):
                columns[field.name] = columns[field.name].combine_chunks().dictionary_encode().cast(field.type)
        table = pa.Table.from_arrays([columns[name] for name in types], schema=schema)
        table.validate(full=True)
        if lacking := [one.name for one in table.schema if not one.nullable and table.column(one.name).null_count]:
            raise ValueError(f"an example has no {lacking[0]}")
        return table
    except (pa.ArrowException, KeyError, OverflowError) as error:
        raise ValueError(str(error).splitlines()[0][:200]) from error


def outcome_name(key: str) -> str:
    return f"outcomes/{key}.csv"


def files_of(jobs: Iterable[BundledJob]) -> Iterator[tuple[str, str]]:
    """Hash and place of every file of weights that the jobs' models name."""
    for job in jobs:
        for model in job.models():
            if model.weights is not None:
                yield model.weights.sha256, model.weights.place
