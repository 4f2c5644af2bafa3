"""Exports open in the tools people have, with the columns, types and numbers that docs/schema.md promises."""

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import claims, examples, export, queue
from jobs.errors import SpecError
from jobs.query import RESULT_COLUMNS, results
from jobs.schema import job
from robustlib.metrics import summarise

DOCS = Path(__file__).parents[2] / "docs" / "schema.md"
N = 50


def outcome(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    wrong, success = random.random(N) < 0.2, random.random(N) < 0.5
    success |= wrong
    return {
        "index": np.arange(N),
        "label": np.zeros(N, np.int64),
        "clean_prediction": wrong.astype(np.int64),
        "adversarial_prediction": success.astype(np.int64),
        "success": success,
        "distance": np.where(success, np.where(wrong, 0, 0.1 * random.random(N)), np.nan).astype(np.float32),
        "broken_by": np.where(success, np.where(wrong, "clean", ["fgsm", "pgd"][seed % 2]), ""),
        "clean_correct": 1 - wrong.astype(np.float32),
        "adversarial_correct": 1 - success.astype(np.float32),
        "adversarial_survived": ~success,
    }


@pytest.fixture
def full(store):
    """The store with every job done, each evaluation with outcomes of its own."""
    from jobs import worst

    with store.begin() as db:
        while claimed := claims.claim(db, "one", most=1, what=job.c.id > 0):
            (job_,) = claimed
            assert queue.start(db, job_, "one", "node", 1, "")
            base = {"seconds": 0.5, "device": "cpu: test", "versions": {"python": "3"}}
            if job_.kind == "worst":
                worst.settle(db, job_)
            elif job_.kind == "eval":
                columns = outcome(job_.id)
                blob = examples.encode(examples.to_table(columns))
                queue.finish(db, job_, summarise(columns) | base, (blob, N))
            else:
                queue.finish(db, job_, {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5} | base)
    return store


def documented(heading: str) -> dict[str, str]:
    """Column and type of the table under a heading of the documentation."""
    section = DOCS.read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE))


def described(schema: pa.Schema) -> dict[str, str]:
    return {f.name: "string, dictionary" if pa.types.is_dictionary(f.type) else str(f.type) for f in schema}


def write(store, path: Path, **how) -> int:
    with store.begin() as db:
        return export.export(db, path, **how)


def test_the_documentation_has_the_schema():
    assert documented("One row a result") == described(export.schema())
    assert documented("One row an example") == described(export.example_schema())
    assert tuple(export.schema().names) == RESULT_COLUMNS


@pytest.mark.parametrize("per_example", [False, True])
def test_arrow_parquet_and_csv_hold_the_same(full, tmp_path, per_example):
    counts = {write(full, tmp_path / f"t.{kind}", per_example=per_example) for kind in ("arrow", "parquet", "csv")}
    assert counts == {6 * N if per_example else 6}
    wanted = export.example_schema() if per_example else export.schema()
    arrow = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all()
    assert arrow.schema.equals(wanted)
    assert {b"robustq", b"kernel", b"schema"} <= set(arrow.schema.metadata)
    parquet = pq.read_table(tmp_path / "t.parquet")
    assert parquet.schema.names == wanted.names
    assert {b"robustq", b"kernel", b"schema"} <= set(parquet.schema.metadata)
    assert parquet.to_pylist() == arrow.to_pylist()
    frame = pd.read_csv(tmp_path / "t.csv")
    assert list(frame.columns) == wanted.names
    assert frame["job_id"].tolist() == arrow.column("job_id").to_pylist()
    assert pd.read_parquet(tmp_path / "t.parquet").shape == (arrow.num_rows, arrow.num_columns)


def test_duckdb_reads_the_parquet_and_finds_the_same_accuracy(full, tmp_path):
    write(full, tmp_path / "e.parquet", per_example=True)
    query = (
        f"SELECT job_id, 1 - avg(success::DOUBLE), avg(adversarial_correct) FROM '{tmp_path / 'e.parquet'}' GROUP BY 1"
    )
    found = {job_id: (a, b) for job_id, a, b in duckdb.execute(query).fetchall()}
    with full.begin() as db:
        rows = results(db)
    assert len(rows) == len(found) == 6
    for row in rows:
        assert found[row["job_id"]] == pytest.approx((row["robust_accuracy"], row["robust_accuracy"]), abs=1e-12)


def test_the_summary_has_the_rows_of_the_query(full, tmp_path):
    write(full, tmp_path / "t.arrow")
    table = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all().to_pylist()
    with full.begin() as db:
        rows = results(db)
    for got, row in zip(table, rows, strict=True):
        assert json.loads(got["versions"]) == row["versions"]
        assert abs(got["recorded_at"].timestamp() - row["recorded_at"]) < 0.001
        same = set(RESULT_COLUMNS) - {"versions", "recorded_at"}
        assert {name: got[name] for name in same} == {name: row[name] for name in same}


def test_the_worst_case_is_never_above_its_parts(full):
    with full.begin() as db:
        rows = results(db)
    for model in ("a", "b"):
        by_attack = {row["attack"]: row["robust_accuracy"] for row in rows if row["model"] == model}
        assert by_attack["worst-case"] <= min(by_attack["fgsm"], by_attack["pgd"])


def test_an_unknown_ending_is_refused_and_a_broken_export_leaves_no_file(full, tmp_path, monkeypatch):
    with pytest.raises(SpecError, match=r"^expected a file ending in .arrow, .parquet or .csv, got .*t.xls$"):
        write(full, tmp_path / "t.xls")

    def broken(db, job_id):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "examples_of", broken)
    with pytest.raises(OSError, match="No space left"):
        write(full, tmp_path / "t.arrow", per_example=True)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".db" and "results.db" not in path.name] == []
