"""Wrong input of all kinds: one line with exit code 2 and nothing left behind, or it changes what the store holds.

ROBUSTQ_WRONG_INPUTS sets how many cases are drawn, ROBUSTQ_WRONG_INPUT_SEED the first of their seeds.
"""

import os
import random
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from robustq import cli
from robustq.cluster.commands import one_model
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import job, sweep, sweep_job
from robustq.jobs.text.canonical_json import without_places
from tests.helpers.bounded import bounded
from tests.helpers.wrong_case import Case
from tests.helpers.wrong_input import KINDS, make

NUMBER = int(os.environ.get("ROBUSTQ_WRONG_INPUTS", "300"))
FIRST = int(os.environ.get("ROBUSTQ_WRONG_INPUT_SEED", "0"))
CHUNKS = 10  # tests, so that a failure names a few cases


def given(case: Case, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(case.folder)
    with bounded():
        return CliRunner().invoke(cli.main, ["--store", "r.db", *case.words], prog_name="robustq")


def held(folder: Path) -> Any:
    """What a store holds of a study: its jobs with their keys, how they are packed, and what people ask for."""
    store = open_store(str(folder / "r.db"))
    columns = [column for column in job.c if column.name not in ("id", "created_at", "cost", "bundle_key")]
    with store.begin() as db:
        jobs = [dict(row) for row in db.execute(sa.select(*columns).order_by(job.c.id)).mappings()]
        names = db.execute(sa.select(sweep_job.c.model).order_by(sweep_job.c.job_id)).scalars().all()
        about = db.execute(sa.select(sweep.c.name, sweep.c.priority)).all() if "priority" in sweep.c else None
        about = about or db.execute(sa.select(sweep.c.name)).all()
    store.engine.dispose()
    # Where a case lies is its own.
    told = [{name: without_places(value) if name == "spec" else value for name, value in row.items()} for row in jobs]
    return repr((told, list(names), [tuple(row) for row in about])).replace(str(folder), "")


def run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTQ_RAY", "1")  # else each attack would start a process for its job, in vain
    monkeypatch.setattr(one_model, "finish", lambda *args, **kwargs: None)
    for place in (
        "robustq.cluster.driver.drive.drive_and_watch",
        "robustq.jobs.commands.queue_actions.raise_failures",
        "robustq.jobs.results.audits.audit_of",
    ):
        monkeypatch.setattr(place, lambda *args, **kwargs: None)
    monkeypatch.setattr("robustq.jobs.commands.audit_text.audit_page", lambda found: "")


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run_nothing(monkeypatch)


def complaint(case: Case, result: Result, base: str) -> str | None:
    """What is wrong with how a case ended."""
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return "".join(traceback.format_exception(error))[-1500:]
    lines = [line for line in result.stderr.splitlines() if line]
    if result.exit_code == 2:
        if result.stdout or (case.folder / "r.db").exists():
            return "refused, but something was printed or made"
        usage = len(lines) > 1 and lines[0].startswith("Usage: ") and lines[-1].startswith("Error: ")
        told = len(lines) == 1 and lines[0].startswith("robustq: ")
        return None if usage or told else f"expected one line, got {lines}"
    if result.exit_code:
        return f"ended with {result.exit_code}: {lines}"
    if not (case.folder / "r.db").exists():  # in another store, or of a command that only reads
        return None if case.idle else "taken, and made no store"
    said = any("has no effect" in line for line in lines)
    return None if held(case.folder) != base or case.idle or said else "taken, and changes nothing"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the unchanged commands leave in the store."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_nothing(monkeypatch)
        for kind in KINDS:
            case = make(kind, folder / kind, None)
            result = given(case, monkeypatch)
            assert result.exit_code == 0, (kind, result.output)
            found[kind] = held(case.folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_refused_in_one_line_or_taken_with_effect(chunk: int, bases, tmp_path, monkeypatch):
    wrong, kinds = [], list(KINDS)
    for number in range(FIRST + chunk, FIRST + NUMBER, CHUNKS):
        draw = random.Random(number)
        kind = draw.choice(kinds)
        case = make(kind, tmp_path / str(number), draw)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = given(case, monkeypatch)
        told = complaint(case, result, bases[kind])
        told = told or (f"warns: {caught[0].message}" if caught else None)
        if told is not None:
            wrong.append(f"{number} ({kind}: {case.what}): {told}")
    assert not wrong, "\n\n".join(wrong)
