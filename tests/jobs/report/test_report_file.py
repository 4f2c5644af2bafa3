"""The report as a file: safe to open, complete, and honest about what is missing."""

import base64
import hashlib

import pytest
import sqlalchemy as sa
import yaml

from robustq.jobs.errors import SpecError
from robustq.jobs.report.page.render import render_sections
from robustq.jobs.report.write import write_report
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt, driver, job
from robustq.jobs.study.study import load_study
from tests.helpers.fake_results import add_sweep
from tests.helpers.fake_sweep import RADII, add_training, distrust, fill
from tests.helpers.html_reading import Elements, page_of, report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
MODELS = {"weak": 0.1, "middling": 0.3, "strong": 1.0}


@pytest.mark.slow
def test_hostile_names_stay_texts(made_up):
    sweep_id = fill(made_up, {HOSTILE: 1.0, '<a href="https://e.example">x</a>': 0.5})
    page = report(made_up)
    tags = Elements(page).tags
    assert not [tag for tag, _ in tags if tag in ("iframe", "object", "embed", "link", "base", "form")]
    assert not [(tag, name) for tag, attributes in tags for name in attributes if name.startswith("on")]
    assert all(str(attributes["src"]).startswith("data:image/png;base64,") for tag, attributes in tags if tag == "img")
    assert all(str(attributes["href"]).startswith("#") for tag, attributes in tags if tag == "a")
    assert "alert(1)" in Elements(page).text
    # Plotly takes tags in texts for markup: what it is given must hold none.
    for chart in page_of(made_up, sweep_id).curves:
        assert chart.data and not [trace["name"] for trace in chart.data if "<" in trace["name"]]


@pytest.mark.slow
def test_commands_to_paste_are_quoted(made_up):
    fill(made_up, MODELS, name="x; rm -rf ~")
    assert "robustq results --sweep 'x; rm -rf ~'" in Elements(report(made_up, "x; rm -rf ~")).text


@pytest.mark.postgres
def test_a_server_gives_the_same_page(made_up, postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTQ_ARTIFACTS", str(tmp_path / "artifacts"))
    server = open_store(postgres, create=True, write=True)
    for store in (made_up, server):
        fill(store, MODELS)
        with store.begin() as db:
            distrust(db, "weak", "no gradient")
    first, second = page_of(made_up, 1), page_of(server, 1)
    server.engine.dispose()
    assert [(s.name, s.hash) for s in render_sections(first)] == [(s.name, s.hash) for s in render_sections(second)]


@pytest.mark.slow
def test_the_policy_lets_these_scripts_run_and_nothing_else(made_up):
    fill(made_up, {HOSTILE: 1.0})
    elements = Elements(report(made_up))
    policy = next(a["content"] for tag, a in elements.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:" and "connect-src" not in rules
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in elements.scripts]
    assert rules["script-src"].split() == [f"'sha256-{text}'" for text in hashes]
    assert len(hashes) == 3


@pytest.mark.slow
def test_the_library_keeps_its_licence(made_up):
    fill(made_up, MODELS)
    script = Elements(report(made_up)).scripts[-1]
    assert "Permission is hereby granted, free of charge" in script and "Plotly" in script


@pytest.mark.slow
def test_the_study_on_the_page_is_the_study(made_up, tmp_path):
    found = page_of(made_up, fill(made_up, MODELS))
    (tmp_path / "study.yaml").write_text(found.repeat.study)
    study, _ = load_study(tmp_path / "study.yaml", {})
    assert (study.name, sorted(study.models)) == ("made-up", sorted(MODELS))
    assert [attack.name for attack in study.attacks] == ["fgsm", "pgd", "square"]
    assert yaml.safe_load(found.repeat.study)["attacks"][1]["eps"] == list(RADII)


@pytest.mark.slow
def test_without_the_data_set_the_rest_is_there(made_up):
    fill(made_up, MODELS)
    with made_up.begin() as db:
        for id_, spec in db.execute(sa.select(job.c.id, job.c.spec).where(job.c.kind == "eval")).all():
            other = spec | {"data": {"place": "digits", "sha256": "0" * 64}}
            db.execute(sa.update(job).where(job.c.id == id_).values(spec=other))
    text = Elements(report(made_up)).text
    assert "the data set digits on this machine is another than the one that was evaluated" in text
    assert "strong is the most robust model" in text


@pytest.mark.slow
def test_an_unfinished_sweep_tells_what_failed(made_up):
    sweep_id = fill(made_up, MODELS)
    with made_up.begin() as db:
        db.execute(sa.insert(driver).values(id="d", host="h", pid=1, process_started_at=0.0, started_at=0.0, heartbeat_at=0.0, version="0"))  # fmt: skip
        add_training(db, made_up.artifacts, sweep_id, "late", 0, 3)
        id_ = db.execute(sa.select(sa.func.max(job.c.id))).scalar_one()
        failed = {
            "state": "failed",
            "error_class": "ValueError",
            "error_message": "bad <b>weights</b>",
            "finished_at": 1.0,
        }
        db.execute(sa.update(job).where(job.c.id == id_).values(**failed))
        for n, trace in ((1, "the first try"), (2, "Traceback: <script>alert(3)</script>")):
            tried = {
                "job_id": id_,
                "n": n,
                "fence": n,
                "driver_id": "d",
                "started_at": 0.0,
                "ended_at": 1.0,
                "traceback": trace,
            }
            db.execute(sa.insert(attempt).values(**tried))
    text = Elements(report(made_up)).text
    assert "Failed: 1 job" in text and "ValueError: bad <b>weights</b>" in text
    assert "Traceback: <script>alert(3)</script>" in text and "the first try" not in text
    assert "The sweep is not complete: 1 of 40 jobs is not done" in text


def test_a_sweep_without_results_is_refused(made_up):
    with made_up.begin() as db:
        add_sweep(db, "empty")
    with pytest.raises(SpecError, match="sweep 'empty' has no results yet: robustq drive --sweep empty runs it"):
        report(made_up, "empty")


@pytest.mark.slow
def test_figures_are_written_as_files(made_up, tmp_path):
    fill(made_up, {"a": 0.5, "b": 1.0})
    written = write_report(made_up, "made-up", tmp_path / "page.html", tmp_path / "figures")
    names = {path.name for path in written}
    assert {"page.html", "training.png", "confusion-a.png", "images-b.png", "eps-curve-worst-case-Linf.png"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")


@pytest.mark.slow
def test_every_chart_and_table_has_a_name_of_its_own(made_up):
    fill(made_up, MODELS)
    page = report(made_up)
    ids = [a["id"] for _, a in Elements(page).tags if "id" in a]
    assert len(ids) == len(set(ids))
    tables = [a["data-table"] for _, a in Elements(page).tags if "data-table" in a]
    assert len(tables) == len(set(tables))
    assert all(a.get("aria-label") for _, a in Elements(page).tags if a.get("role") in ("img", "region", "group"))
