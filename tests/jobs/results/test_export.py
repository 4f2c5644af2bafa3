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
from pyarrow import dataset

from robustlib.metrics import summarise
from robustq.jobs.errors import SpecError
from robustq.jobs.queue import claims, transitions
from robustq.jobs.results import export, export_examples
from robustq.jobs.results.columns import RESULT_COLUMNS
from robustq.jobs.results.filters import make_filters
from robustq.jobs.results.rows import result_rows
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import job
from tests.helpers import fake_results

DOCS = Path(__file__).parents[3] / "docs" / "schema.md"
N = 50


@pytest.fixture
def full(store):
    """The store with every job done, each evaluation with outcomes of its own."""
    from robustq.jobs.queue import worst_case

    with store.begin() as db:
        while claimed := claims.claim(db, "one", most=1, what=job.c.id > 0):
            (job_,) = claimed
            assert transitions.start(db, job_, "one", "node", 1, "")
            base = {"seconds": 0.5, "device": "cpu: test", "versions": {"python": "3"}}
            if job_.kind == "worst":
                worst_case.settle(db, job_)
            elif job_.kind == "eval":
                columns = fake_results.outcome(job_.id, n=N)
                blob = example_outcomes.encode(example_outcomes.to_table(columns))
                transitions.finish(db, job_, summarise(columns) | base, (blob, N))
            else:
                transitions.finish(db, job_, {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5} | base)
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
        rows = result_rows(db)
    assert len(rows) == len(found) == 6
    for row in rows:
        assert found[row["job_id"]] == pytest.approx((row["robust_accuracy"], row["robust_accuracy"]), abs=1e-12)


def test_the_summary_has_the_rows_of_the_query(full, tmp_path):
    write(full, tmp_path / "t.arrow")
    table = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all().to_pylist()
    with full.begin() as db:
        rows = result_rows(db)
    for got, row in zip(table, rows, strict=True):
        assert json.loads(got["versions"]) == row["versions"]
        assert abs(got["recorded_at"].timestamp() - row["recorded_at"]) < 0.001
        same = set(RESULT_COLUMNS) - {"versions", "recorded_at"}
        assert {name: got[name] for name in same} == {name: row[name] for name in same}


def test_the_worst_case_is_never_above_its_parts(full):
    with full.begin() as db:
        rows = result_rows(db)
    for model in ("a", "b"):
        by_attack = {row["attack"]: row["robust_accuracy"] for row in rows if row["model"] == model}
        assert by_attack["worst-case"] <= min(by_attack["fgsm"], by_attack["pgd"])


def test_an_unknown_ending_is_refused_and_a_broken_export_leaves_no_file(full, tmp_path, monkeypatch):
    with pytest.raises(SpecError, match=r"^expected a file ending in .arrow, .parquet or .csv, got .*t.xls$"):
        write(full, tmp_path / "t.xls")

    def broken(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(example_outcomes, "decode", broken)
    for name in ("t.arrow", "folder"):
        with pytest.raises(OSError, match="No space left"):
            write(full, tmp_path / name, per_example=True)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".db" and "results.db" not in path.name] == []


def fetch(query: str) -> list[tuple]:
    relation = duckdb.sql(query)
    assert relation is not None  # a SELECT always gives one
    return relation.fetchall()


def every_row(path: Path) -> list[tuple]:
    """A table's rows in an order of their own, as DuckDB reads them."""
    source = f"read_parquet('{path}/**/*.parquet', hive_partitioning = true)" if path.is_dir() else f"'{path}'"
    names = "job_id, model, attack, norm, eps, seed, index, label, success, distance, broken_by"
    return sorted(fetch(f"SELECT {names} FROM {source}"), key=lambda row: (row[0], row[6]))


@pytest.mark.slow
@pytest.mark.parametrize("piece", [1, 70, 10_000])
def test_a_folder_in_pieces_of_any_size_holds_what_a_file_does(full, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(export_examples, "PIECE", piece)
    assert write(full, tmp_path / "t.parquet", per_example=True) == 6 * N
    assert write(full, tmp_path / "folder", per_example=True, partition=["model", "attack"]) == 6 * N
    assert every_row(tmp_path / "folder") == every_row(tmp_path / "t.parquet")
    parts = {str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*.parquet")}
    assert parts == {f"model={m}/attack={a}/part-0.parquet" for m in "ab" for a in ("fgsm", "pgd", "worst-case")}
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == {1: 6, 70: 3, 10_000: 1}[piece]
    one = pq.ParquetFile(tmp_path / "folder" / "model=a" / "attack=pgd" / "part-0.parquet").schema_arrow
    assert one.names == [name for name in export.example_schema().names if name not in ("model", "attack")]
    assert {b"robustq", b"kernel", b"schema"} <= set(one.metadata)


def test_a_name_without_ending_is_a_folder_by_model_and_attack(full, tmp_path):
    assert write(full, tmp_path / "rows") == 6
    assert len(list((tmp_path / "rows").glob("model=*/attack=*/part-0.parquet"))) == 6
    query = f"SELECT model, attack, robust_accuracy FROM read_parquet('{tmp_path}/rows/**/*.parquet', hive_partitioning=true)"
    with full.begin() as db:
        wanted = {(row["model"], row["attack"], row["robust_accuracy"]) for row in result_rows(db)}
    assert set(fetch(query)) == wanted


def test_odd_values_are_folders_that_read_back(tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    names = ["a/b", "..", "50 %=x", "ü&?"]
    with store.begin() as db:
        sweep_id = fake_results.add_sweep(db, "s")
        for name in names:
            fake_results.add_result(db, sweep_id, name, "pgd", None, 1)
            fake_results.add_result(db, sweep_id, name, "pgd", 8 / 255, 2)
    write(store, tmp_path / "folder", partition=["model", "eps", "seed"])
    source = f"read_parquet('{tmp_path}/folder/**/*.parquet', hive_partitioning=true)"
    found = fetch(f"SELECT model, eps::DOUBLE, seed FROM {source}")
    assert set(found) == {(name, eps, seed) for name in names for eps, seed in ((None, 1), (8 / 255, 2))}
    table = dataset.dataset(tmp_path / "folder", partitioning="hive").to_table()
    assert set(table.column("model").to_pylist()) == set(names)
    store.engine.dispose()


def test_filters_choose_what_is_exported(full, tmp_path):
    chosen = make_filters(None, {"model": "a", "attack": ["pgd", "worst-*"]})
    assert write(full, tmp_path / "t.parquet", filters=chosen) == 2
    assert write(full, tmp_path / "e.parquet", filters=chosen, per_example=True) == 2 * N
    assert {row[1:3] for row in every_row(tmp_path / "e.parquet")} == {("a", "pgd"), ("a", "worst-case")}
    none = make_filters(None, {"model": "none"})
    assert [write(full, tmp_path / f"none{kind}", filters=none, per_example=True) for kind in (".arrow", ".csv")] == [
        0,
        0,
    ]
    assert pa.ipc.open_file(str(tmp_path / "none.arrow")).read_all().schema.equals(export.example_schema())


@pytest.mark.parametrize(
    ("name", "partition", "line"),
    [
        ("t.parquet", ["model"], "--partition writes a folder of Parquet files: expected a name without ending, got "),
        ("folder", ["colour"], "there is no column 'colour', expected one of: sweep, model, arch"),
        ("folder", ["key"], "there is no column 'key', expected one of"),
        ("full", ["model"], "full exists already: files of two exports side by side would count twice"),
        ("file", (), "file exists already"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(full, tmp_path, name, partition, line):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=line):
        write(full, tmp_path / name, partition=partition)


def test_outcomes_that_the_store_lacks_are_told(tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    with store.begin() as db:
        sweep_id = fake_results.add_sweep(db, "s")
        fake_results.add_result(db, sweep_id, "a", "pgd", outcomes=False)
        fake_results.add_result(db, sweep_id, "b", "pgd")
    told = []
    assert write(store, tmp_path / "t.parquet", per_example=True, tell=told.append) == fake_results.N
    assert told == ["1 result has no outcomes of single examples and is left out"]
    store.engine.dispose()


def test_a_word_that_nobody_foresaw_comes_out_of_every_kind_of_file(tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    with store.begin() as db:
        sweep_id = fake_results.add_sweep(db, "s")
        for i, word in enumerate(("clean", "new-one", "newer")):
            columns = fake_results.outcome(i) | {"broken_by": np.array([word, ""] * (fake_results.N // 2))}
            fake_results.add_result(db, sweep_id, f"m{i}", "pgd", columns=columns)
    pieces = pytest.MonkeyPatch()
    with pieces.context() as patch:
        patch.setattr(export_examples, "PIECE", 1)  # the later words come in later batches
        for kind in ("arrow", "parquet"):
            write(store, tmp_path / f"t.{kind}", per_example=True)
    wanted = [word for word in ("clean", "new-one", "newer") for _ in range(fake_results.N // 2)]
    arrow = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all().column("broken_by").to_pylist()
    assert [word for word in arrow if word] == wanted
    assert pq.read_table(tmp_path / "t.parquet").column("broken_by").to_pylist() == arrow
    store.engine.dispose()
