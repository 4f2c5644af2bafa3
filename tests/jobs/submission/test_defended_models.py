"""Studies with defences, corruptions, certificates and models behind addresses: as jobs, as keys, as results."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib.defences import DEFENCES
from robustlib.settings import TrainSettings
from robustq.jobs.commands import names_text
from robustq.jobs.errors import SpecError
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.inputs import build_model, load_data
from robustq.jobs.running.run import run
from robustq.jobs.running.warm_models import trained_model
from robustq.jobs.specs import (
    AttackSpec,
    CodeRef,
    DataRef,
    DefenceSpec,
    EvalSpec,
    FileRef,
    ModelSpec,
    TrainSpec,
    WorstSpec,
    parse,
)
from robustq.jobs.study.study import Study, load_study
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.study_sources import model_entry

STUDY = """\
name: defended
models:
  plain: {arch: lenet5, train: {epochs: 5, validation_examples: 50}}
  jpeg: {arch: lenet5, train: {epochs: 5, validation_examples: 50}, defence: {name: jpeg, quality: 50}}
  both: {arch: lenet5, train: {epochs: 5, validation_examples: 50}, defence: [{name: bit_depth}, {name: smoothing, sigma: 0.1}]}
attacks:
  - {name: clean}
  - {name: certify, sigma: 0.1, n: 50, n0: 10, eps: [0.05, 0.1]}
  - {name: pgd, norm: L2, steps: 2, eps: 0.1}
examples: 40
"""


def plan(tmp_path: Path, text: str) -> list[Planned]:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    study, origin = load_study(path, {})
    return expand(resolve(study, origin, tmp_path, tmp_path))


def evaluation(jobs: list[Planned], model: str, attack: str, eps: float | None = None) -> Planned:
    (found,) = [
        job
        for job in jobs
        if isinstance(job.spec, EvalSpec)
        and (job.model, job.spec.attack.name, job.spec.attack.eps) == (model, attack, eps)
    ]
    return found


def result_of(planned: Planned, tmp_path: Path, weights: dict[str, str]) -> Result:
    assert isinstance(planned.spec, TrainSpec | EvalSpec)
    *_, result = run(planned.spec, Context("cpu", str(tmp_path), "", weights))
    assert isinstance(result, Result)
    return result


def test_keys_from_before_there_were_defences_stay(monkeypatch: pytest.MonkeyPatch):
    """Recorded from the version before, whose kernels were the third."""
    monkeypatch.setattr("robustq.jobs.specs.KERNEL_VERSION", "3")
    data = DataRef(place="parquet:/a/b", sha256="d" * 64)
    model = ModelSpec(
        code=CodeRef(place="/home/me/model.py", factory="build", sha256="c" * 64),
        weights=FileRef(place="/home/me/w.safetensors", sha256="f" * 64),
    )
    attack = AttackSpec(name="pgd", norm="Linf", eps=8 / 255, params={"steps": 20})
    evaluation = EvalSpec(model=model, data=data, attack=attack)
    training = TrainSpec(model=ModelSpec(arch="lenet5"), data=data, settings=TrainSettings(epochs=3))
    assert evaluation.key() == "8c198bfdf8afeb8a97d8e246343544b1036489d9e64de68be9f15bc1a2d31e85"
    assert training.key() == "987f3f667d3c0a1642fac682ed0e9ec2dcfe2abdb3b97fd0e1778d8bfe01304d"
    study = Study.model_validate(
        {"name": "s", "models": {"a": {"arch": "lenet5", "train": {}}}, "attacks": [{"name": "pgd"}]}
    )
    assert "defence" not in study.model_dump()["models"]["a"]


def test_a_defence_decides_the_key_and_comes_back_from_json():
    data = DataRef(place="digits", sha256="d" * 64)
    keys = set()
    for defence in ((), ({"quality": 50},), ({"quality": 75},), ({"quality": 50}, {"quality": 75})):
        parts = tuple(DefenceSpec(name="jpeg", params=params) for params in defence)
        spec = EvalSpec(model=ModelSpec(arch="lenet5", defence=parts), data=data, attack=AttackSpec(name="clean"))
        assert parse(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
        keys.add(spec.key())
    assert len(keys) == 4


def test_defended_models_share_the_training_of_the_network_inside(tmp_path):
    jobs = plan(tmp_path, STUDY)
    (train,) = [job for job in jobs if isinstance(job.spec, TrainSpec)]
    assert isinstance(train.spec, TrainSpec)
    evals = [job for job in jobs if isinstance(job.spec, EvalSpec)]
    assert len(evals) == 3 * 4 and {job.needs for job in evals} == {(train.key,)}
    assert train.spec.model.defence == () and train.defence == "standard"
    words = {job.model: job.defence for job in evals}
    assert words == {
        "plain": "standard",
        "jpeg": "standard + jpeg(quality=50)",
        "both": "standard + bit_depth(bits=4) + smoothing(draws=16, sigma=0.1)",
    }
    # A certificate bounds from below: it is no part of a worst case, and with it apart only one attack is left.
    assert not any(isinstance(job.spec, WorstSpec) for job in jobs)
    certified = evaluation(jobs, "plain", "certify", 0.05).spec
    assert isinstance(certified, EvalSpec) and certified.attack.curve == (0.05, 0.1)


@pytest.mark.slow
def test_results_of_a_defended_model_are_those_of_its_defence(tmp_path):
    jobs = plan(tmp_path, STUDY)
    (train,) = [job for job in jobs if isinstance(job.spec, TrainSpec)]
    trained = result_of(train, tmp_path, {})
    weights = {train.key: next(a.sha256 for a in trained.artifacts if a.role == "weights")}
    rows = {}
    for label, name, eps in [("plain", "clean", None), ("jpeg", "clean", None), ("both", "certify", 0.05),
                             ("both", "certify", 0.1), ("plain", "certify", 0.05)]:  # fmt: skip
        rows[label, name, eps] = result_of(evaluation(jobs, label, name, eps), tmp_path, weights).row
    assert isinstance(train.spec, TrainSpec)
    dataset = load_data(train.spec.data, "test")
    x, y = torch.from_numpy(dataset.x[:40]).float() / 255, torch.from_numpy(dataset.y[:40])
    for label in ("plain", "jpeg"):
        spec = evaluation(jobs, label, "clean").spec
        assert isinstance(spec, EvalSpec)
        model = trained_model(spec.model, dataset, 0, Context("cpu", str(tmp_path), "", weights), train.key)
        with torch.no_grad():
            accuracy = (model(x).argmax(1) == y).float().mean().item()
        assert rows[label, "clean", None]["clean_accuracy"] == pytest.approx(accuracy)
    assert type(model.get_submodule("before")).__name__ == "Jpeg"
    first, second = rows["both", "certify", 0.05], rows["both", "certify", 0.1]
    assert first["clean_accuracy"] >= first["robust_accuracy"] >= second["robust_accuracy"] > 0.3
    assert first["n"] == 40 and first["extra"]["curve_seconds"] == second["extra"]["curve_seconds"]
    assert rows["plain", "certify", 0.05]["extra"]["forwards"] == 40 * (10 + 50)


def test_kinds_and_severities_of_corruptions_are_spread(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    folder = save_folder(tmp_path, images)
    text = f"""\
name: c
dataset: folder:{folder}
models: {{a: {{arch: lenet5, weights: w.safetensors, defence: {{name: median}}}}}}
attacks:
  - {{name: corruption, kind: all, severity: [1, 5]}}
  - {{name: corruption, kind: [fog, snow]}}
"""
    save_weights(tmp_path / "w.safetensors")
    jobs = plan(tmp_path, text)
    found = [job.spec.attack for job in jobs if isinstance(job.spec, EvalSpec)]
    assert len(found) == 15 * 2 + 2 and len({job.key for job in jobs}) == 32
    assert all(attack.norm is None and attack.eps is None for attack in found)
    assert found[-1].recipe == "corruption(kind=snow, severity=3)"
    assert jobs[0].defence == "median(size=3)"
    for old, new, message in [
        ("severity: [1, 5]", "severity: [1, 6]", "5: corruption: expected severity from 1 to 5, got 6"),
        ("[fog, snow]", "[fog, snw]", "6: corruption: unknown kind 'snw', expected one of: gaussian_noise"),
        (f"folder:{folder}", "digits", "5: corruption expects images with 1 or 3 channels and at least 32x32 pixels, got 1 and 8x8"),
    ]:  # fmt: skip
        with pytest.raises(SpecError) as caught:
            plan(tmp_path, text.replace(old, new))
        assert str(caught.value).startswith(f"{tmp_path}/study.yaml:{message}")


def save_folder(tmp_path: Path, images: np.ndarray) -> Path:
    from PIL import Image

    for i, image in enumerate(images):
        path = tmp_path / "data" / "test" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "data"


def save_weights(path: Path) -> None:
    import safetensors.torch

    from robustlib.models import build

    model = build(arch="lenet5", in_channels=3, num_classes=2, image_size=(32, 32))
    safetensors.torch.save_file(model.state_dict(), path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: jpeg, ", "name: jpg, ", f"4: unknown defence 'jpg', expected one of: {', '.join(DEFENCES)}"),
        ("quality: 50", "qualty: 50", "4: jpeg has no parameter 'qualty', it has: quality"),
        ("quality: 50", "quality: high", "4: jpeg: expected quality of type int, got 'high'"),
        ("quality: 50", "quality: 500", "4: jpeg: expected quality from 1 to 95, got 500"),
        ("name: jpeg, quality: 50", "quality: 50", "4: models.jpeg.defence.0.name is missing"),
        ("{name: bit_depth}", "{name: dropout, p: 2}", "5: dropout: expected p between 0 and 1, got 2"),
        ("sigma: 0.1, n: 50", "n: 50", "8: certify: expected sigma, the noise to smooth the model with"),
        (
            "sigma: 0.1, n: 50",
            "sigma: 0.2, n: 50",
            "8: certify: expected the sigma of the model's smoothing, 0.1, got 0.2",
        ),
        ("sigma: 0.1, n: 50", "norm: Linf, n: 50", "8: certify expects norm L2, eps, and no restarts"),
        ("sigma: 0.1, n: 50", "step: 50", "8: certify has no parameter 'step', it has: alpha, n, n0, sigma"),
    ],
)
def test_what_is_wrong_with_a_defence_is_one_line(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(SpecError) as caught:
        plan(tmp_path, STUDY.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path}/study.yaml:{message}")


@pytest.mark.slow
def test_an_address_is_a_model(tmp_path):
    """A server that takes the darkest image for class 3; found by its address alone, which decides the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
            body = json.dumps({"predictions": [[0.0] * 3 + [1.0] + [0.0] * 6 for _ in images]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1/models/three:predict"
    try:
        assert model_entry(url, None) == {"file": url}
        text = f"name: s\nmodels: {{a: {{file: '{url}', options: {{batch_size: 16}}}}}}\nattacks: [{{name: clean}}]\nexamples: 50\n"
        (job,) = plan(tmp_path, text)
        assert isinstance(job.spec, EvalSpec) and job.spec.model.code is not None
        assert (job.arch, job.spec.model.code.reference) == ("three:predict", url)
        dataset = load_data(job.spec.data, "test")
        model = build_model(job.spec.model, dataset, 0)
        assert model(torch.zeros(2, 1, 8, 8)).argmax(1).tolist() == [3, 3]
        row = result_of(job, tmp_path, {}).row
        assert row["clean_accuracy"] == pytest.approx((dataset.y[:50] == 3).mean())
        with pytest.raises(SpecError, match=r"study.yaml:2: http://.* has no option 'batchsize', it has: url, "):
            plan(tmp_path, text.replace("batch_size", "batchsize"))
        other = CodeRef(place=url.rpartition(":")[0] + "2", factory="predict", sha256="0" * 64)
        moved = job.spec.model_copy(update={"model": ModelSpec(code=other)})
        assert moved.key() != job.key
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(SpecError, match=r"study.yaml:2: http://.* gave no answer in 1 try: .*refused"):
        plan(tmp_path, text.replace("batch_size: 16", "retries: 0"))


def test_the_list_of_defences_and_of_certify():
    rows = json.loads(names_text.names_text("defences", torchvision=False, as_json=True))
    assert [row["name"] for row in rows] == list(DEFENCES)
    assert rows[0]["parameters"] == "quality=75" and rows[0]["what"].startswith("JPEG compression")
    assert "certify" in names_text.names_text("attacks", torchvision=False, as_json=False)
