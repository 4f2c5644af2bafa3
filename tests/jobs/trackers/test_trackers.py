"""Results in trackers are read back by these, with the store's numbers; a package that is missing is told in a line."""

import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustq.cli import main
from robustq.jobs.errors import SpecError
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.store.schema import job, job_dep, result, sweep_job
from robustq.jobs.trackers.export import export_runs
from robustq.jobs.trackers.runs import Run, runs_of
from tests.helpers.fake_explanations import add_explanation, made_up_measures
from tests.helpers.fake_results import add_result, add_sweep

HISTORY = [{"loss": 2.5 - n, "clean_accuracy": 0.25 * n, "attacked_accuracy": 0.125 * n} for n in (1, 2)]


@pytest.fixture
def two_runs(made_up):
    """A model of a grid that was trained, with two attacks; another without a training."""
    with made_up.begin() as db:
        sweep = add_sweep(db, "s")
        settings = {"objective": "pgd", "epochs": 2, "attack": {"steps": 5}}
        train = add_result(
            db,
            sweep,
            "a[steps=5]",
            "clean",
            None,
            outcomes=False,
            kind="train",
            spec={"kind": "train", "settings": settings},
        )
        db.execute(sa.update(result).where(result.c.job_id == train).values(extra={"history": HISTORY}))
        for attack, value in (("fgsm", 0.5), ("pgd", 0.25)):
            number = add_result(db, sweep, "a[steps=5]", attack, robust_accuracy=value, clean_accuracy=0.75)
            db.execute(sa.insert(job_dep).values(job_id=number, needs_id=train))
        add_result(db, sweep, "b", "deepfool", None, norm="L2", distance_median=0.5)
        assert db.execute(sa.select(sa.func.count()).select_from(sweep_job)).scalar() == 4
    return made_up


def runs(store) -> list[Run]:
    with store.begin() as db:
        return runs_of(db, Filters())


def exported(store, tracker: str, place: str) -> tuple[int, list[str]]:
    told: list[str] = []
    with store.begin() as db:
        return export_runs(db, tracker, place, Filters(), told.append), told


def test_a_run_has_settings_numbers_and_history(two_runs):
    first, second = runs(two_runs)
    assert (first.name, second.name) == ("a[steps=5], seed 0", "b, seed 0")
    assert first.metrics["clean_accuracy"] == 0.75
    assert {name: value for name, value in first.metrics.items() if name.startswith("robust_accuracy/")} == {
        "robust_accuracy/fgsm/Linf/8_255": 0.5,
        "robust_accuracy/pgd/Linf/8_255": 0.25,
    }
    assert first.history == {
        "train/loss": [1.5, 0.5],
        "train/clean_accuracy": [0.25, 0.5],
        "train/attacked_accuracy": [0.125, 0.25],
    }
    assert (
        first.settings["steps"] == "5" and first.settings["model"] == "a" and first.settings["train.attack.steps"] == 5
    )
    assert second.metrics["distance_median/deepfool/L2"] == 0.5 and second.history == {}
    assert first.id == runs(two_runs)[0].id != second.id
    with two_runs.begin() as db:
        db.execute(sa.update(job).where(job.c.attack == "pgd").values(key="0" * 64))
    assert runs(two_runs)[0].id != first.id  # another result


@pytest.mark.slow
def test_a_run_has_the_means_of_its_explanations_too(made_up):
    """Beside its accuracies; and alone, where it has no others."""
    means = {"noise": 0.75, "pgd": 0.5, "explanation-attack": 0.25}
    columns = made_up_measures(1, means)
    with made_up.begin() as db:
        sweep = add_sweep(db, "s")
        add_result(db, sweep, "a", "pgd", robust_accuracy=0.25, clean_accuracy=0.75)
        for model, method in (("a", "grad-cam"), ("b", "saliency"), ("b", "saliency")):
            add_explanation(db, sweep, model, columns, method=method)
    first, second = runs(made_up)
    assert first.metrics["robust_accuracy/pgd/Linf/8_255"] == 0.25 and first.metrics["clean_accuracy"] == 0.75
    moved = columns["top_intersection"][columns["against"] == "noise"].mean()
    assert first.metrics["top_intersection/grad-cam/Linf/8_255/noise"] == pytest.approx(moved)
    assert "top_intersection/grad-cam/Linf/8_255/clean" not in first.metrics  # of a map with itself
    assert first.metrics["kept/grad-cam/Linf/8_255/pgd"] == 20
    assert first.tags["verdict/grad-cam/Linf/8_255"] == "pass" and len(first.keys) == 2
    assert second.metrics["clean_accuracy"] == 1 and second.settings["model"] == "b"
    assert "deletion/saliency/Linf/8_255+/clean" in second.metrics and len(second.keys) == 2
    with made_up.begin() as db:
        (attacked,) = runs_of(db, make_filters(None, {"attack": "pgd"}))
    assert not any("grad-cam" in name for name in attacked.metrics)


def test_no_result_and_no_package_are_told(made_up, two_runs, monkeypatch):
    with pytest.raises(SpecError, match="there is no result that the options leave"), two_runs.begin() as db:
        runs_of(db, make_filters(None, {"model": "none"}))
    monkeypatch.setitem(sys.modules, "wandb", None)
    sys.modules.pop("robustq.jobs.trackers.to_wandb", None)
    done = CliRunner().invoke(main, ["--store", two_runs.url, "export", "--to", "wandb", "project"])
    assert (done.exit_code, done.stderr) == (
        2,
        "robustq: --to wandb needs the package wandb: pip install 'robustq[wandb]'\n",
    )
    done = CliRunner().invoke(main, ["--store", two_runs.url, "export", "--to", "wandb", "p", "--per-example"])
    assert done.exit_code == 2 and "--per-example has no effect with --to" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_reads_them_back(two_runs, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server would do, and take longer
    place = f"file://{tmp_path}/mlruns"
    assert exported(two_runs, "mlflow", place) == (2, [])
    assert exported(two_runs, "mlflow", place) == (0, ["2 runs are there already, with the same results"])
    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    found = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert set(found) == {run.name for run in runs(two_runs)}
    for run in runs(two_runs):
        data = found[run.name].data
        assert {name: value for name, value in data.metrics.items() if name in run.metrics} == run.metrics
        assert data.params == {name: str(value) for name, value in run.settings.items()}
        assert data.tags["robustq.run"] == run.id
    history = client.get_metric_history(found["a[steps=5], seed 0"].info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.5), (2, 0.5)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_them_back(two_runs, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    assert exported(two_runs, "tensorboard", str(tmp_path / "tb")) == (2, [])
    assert exported(two_runs, "tensorboard", str(tmp_path / "tb"))[0] == 0
    folders = sorted((tmp_path / "tb" / "s").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["a_steps_5__ seed 0", "b_ seed 0"]
    for folder, run in zip(folders, runs(two_runs), strict=True):
        events = EventAccumulator(str(folder)).Reload()
        assert set(events.Tags()["scalars"]) == {*run.metrics, *run.history}
        for name, value in run.metrics.items():
            (scalar,) = events.Scalars(name)
            assert (scalar.step, scalar.value) == (0, pytest.approx(value, abs=1e-7))
        for name, values in run.history.items():
            assert [(one.step, one.value) for one in events.Scalars(name)] == list(enumerate(values, 1))
        assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_has_them_on_the_disk(two_runs, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    assert exported(two_runs, "wandb", "project")[0] == 2
    found = [path.name for path in Path(tmp_path).rglob("*.wandb")]
    assert sorted(found) == sorted(f"run-{run.id}.wandb" for run in runs(two_runs))
    content = b"".join(path.read_bytes() for path in Path(tmp_path).rglob("*.wandb"))
    assert b"robust_accuracy/pgd/Linf/8_255" in content and b"train.attack.steps" in content
