"""What is wrong with a study is one line that names the file, the line in it and the mend."""

from pathlib import Path

import pytest

from robustq.jobs.errors import SpecError
from robustq.jobs.specs import EvalSpec, TrainSpec, WorstSpec
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import expand, resolve

GOOD = """\
name: small
dataset: digits
models:
  a: {arch: lenet5, train: {objective: standard, epochs: 2}}
  b: {arch: convnet3, dropout_at_inference: 0.5, train: {objective: pgd, eps: 8/255, steps: 3, epochs: 2}}
attacks:
  - {name: clean}
  - {name: pgd, steps: 5, restarts: 2, eps: [0, 4/255, 8/255]}
  - {name: fgsm, eps: 8/255}
  - {name: deepfool}
seeds: [0, 1]
examples: 100
"""


def plan(tmp_path: Path, text: str):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    study, origin = load_study(path, {})
    return expand(resolve(study, origin, tmp_path, tmp_path))


def test_a_study_becomes_its_jobs(tmp_path):
    jobs = plan(tmp_path, GOOD)
    kinds = [type(job.spec) for job in jobs]
    # By model and seed: a training; clean, three PGD, FGSM and DeepFool; worst cases at 4/255 (PGD at 0 and 4) and 8/255.
    assert kinds.count(TrainSpec) == 4
    assert kinds.count(EvalSpec) == 4 * 6
    assert kinds.count(WorstSpec) == 4 * 2
    assert len({job.key for job in jobs}) == len(jobs)
    order = {job.key: i for i, job in enumerate(jobs)}
    assert all(order[need] < order[job.key] for job in jobs for need in job.needs)
    trained = {job.key: job for job in jobs if isinstance(job.spec, TrainSpec)}
    for job in jobs:
        if isinstance(job.spec, EvalSpec):
            assert job.needs == (job.spec.train,)
            assert (trained[job.needs[0]].model, trained[job.needs[0]].seed) == (job.model, job.seed)


def test_defaults_are_spelt_out_and_fractions_are_numbers(tmp_path):
    jobs = plan(tmp_path, GOOD)
    pgd = next(job.spec for job in jobs if isinstance(job.spec, EvalSpec) and job.spec.attack.eps == 8 / 255)
    assert pgd.attack.norm == "Linf"
    assert pgd.attack.params == {
        "steps": 5,
        "step_size": None,
        "loss": "ce",
        "random_start": True,
        "stop_at_success": True,
    }
    deepfool = next(job.spec for job in jobs if isinstance(job.spec, EvalSpec) and job.spec.attack.name == "deepfool")
    assert (deepfool.attack.norm, deepfool.attack.eps) == ("L2", None)
    trained = next(job.spec for job in jobs if job.model == "b" and isinstance(job.spec, TrainSpec))
    assert trained.settings.attack == {"eps": 8 / 255, "steps": 3}
    assert trained.settings.validation_eps == 8 / 255


def test_worst_cases_rest_on_all_radii_up_to_theirs(tmp_path):
    jobs = plan(tmp_path, GOOD)
    eps_of = {job.key: (job.spec.attack.name, job.spec.attack.eps) for job in jobs if isinstance(job.spec, EvalSpec)}
    worst = {
        job.spec.eps: job.spec for job in jobs if isinstance(job.spec, WorstSpec) and job.model == "a" and job.seed == 0
    }
    assert {eps_of[key] for key in worst[4 / 255].evals} == {("pgd", 0.0), ("pgd", 4 / 255)}
    assert {eps_of[key] for key in worst[8 / 255].evals} == {
        ("pgd", 0.0), ("pgd", 4 / 255), ("pgd", 8 / 255), ("fgsm", 8 / 255),
    }  # fmt: skip


def test_renaming_a_model_makes_no_new_job(tmp_path):
    before = {job.key for job in plan(tmp_path, GOOD)}
    assert {job.key for job in plan(tmp_path, GOOD.replace("  a: ", "  other: "))} == before


def test_the_command_line_replaces_entries(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(GOOD)
    study, _ = load_study(path, {"epochs": 1, "examples": "all", "dataset": "mnist"})
    assert (study.examples, study.dataset) == ("all", "mnist")
    assert all(model.train and model.train["epochs"] == 1 for model in study.models.values())


BAD = [
    ("dataset: digits", "dataset: digitz", "2: unknown dataset 'digitz', expected one of: digits, mnist, fashion-mnist, "
     "cifar10, cifar100, svhn, parquet:PATH, idx:PATH, folder:PATH, tar:PATH"),
    ("dataset: digits", "dataset: parquet:nowhere", "2: dataset parquet:{tmp}/nowhere: there is no {tmp}/nowhere"),
    ("dataset: digits", f"dataset: folder:{'x' * 300}", f"2: cannot read {{tmp}}/{'x' * 300}: File name too long"),
    ("arch: lenet5", "arch: lenet6", "4: unknown arch 'lenet6', expected one of: lenet5, convnet3, resnet18, torchvision:NAME"),
    ("objective: standard", "objective: normal", "4: model a: unknown objective 'normal', expected one of: standard, fgsm, pgd, deepfool"),
    ("objective: standard, epochs: 2", "objective: standard, epoch: 2", "4: model a: training has no setting 'epoch', it has: "),
    ("epochs: 2}}\n  b", "epochs: two}}\n  b", "4: model a: expected epochs of type int, got the text 'two'"),
    ("epochs: 2}}\n  b", "epochs: 0}}\n  b", "4: model a: expected epochs of at least 1, got 0"),
    ("steps: 3, ", "stepz: 3, ", "5: model b: training on pgd has no parameter 'stepz', it has: eps, loss, norm, random_start, step_size, steps"),
    ("dropout_at_inference: 0.5", "dropout_at_inference: 1.5", "5: models.b.dropout_at_inference: expected dropout_at_inference between 0 and 1, got 1.5"),
    ("arch: convnet3, dropout", "arch: resnet18, dropout", "5: dropout_at_inference needs a model with dropout layers, this one has none"),
    ("name: pgd,", "name: pgdd,", "8: unknown attack 'pgdd', expected one of: clean, fgsm, pgd, mifgsm, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, deepfool, cw, fmn, "),
    ("steps: 5", "steps: five", "8: pgd: expected steps of type int, got 'five'"),
    ("[0, 4/255, 8/255]", "[0, -0.1]", "8: pgd: expected eps of at least 0, got -0.1"),
    ("[0, 4/255, 8/255]", "[0, 8]", "8: pgd: expected eps in [0, 1] for images in [0, 1], got 8: did you mean 8/255?"),
    ("[0, 4/255, 8/255]", "[0, big]", "8: attacks.1.eps.1: expected a number such as 8/255, got 'big'"),
    ("{name: fgsm", "{name: fgsm, norm: L7", "9: attacks.2.norm: input should be 'Linf', 'L2' or 'L1', got 'L7'"),
    ("{name: clean}", "{name: clean, eps: 0.1}", "7: clean has no norm or eps"),
    ("seeds: [0, 1]", "seed: [0, 1]", "11: unknown entry 'seed' (seed)"),
    ("examples: 100", "examples: 0", "12: examples: expected examples of at least 1, got 0"),
    ("{arch: lenet5, train", "{arch: lenet5, file: m.py:build, train", "4: models.a: expected either arch (a name) or file (FILE.py:factory)"),
    ("{arch: lenet5, train: {objective: standard, epochs: 2}}", "{arch: lenet5}", "4: models.a: lenet5 has neither weights nor train: an untrained network says nothing"),
    ("{arch: lenet5, train: {objective: standard, epochs: 2}}", "{file: m.py:build}", "4: there is no model file {tmp}/m.py (No such file or directory)"),
    ("{arch: lenet5, train: {objective: standard, epochs: 2}}", "{arch: lenet5, weights: w.pt}", "4: there is no weights file {tmp}/w.pt (No such file or directory)"),
    ("attacks:\n", "  c: {arch: lenet5, train: {objective: standard, epochs: 2}}\nattacks:\n", "6: 'c' is the same model as 'a': leave it out"),
    ("attacks:\n", "attacks: [\n", "7: no valid YAML: expected the node content, but found '-'"),
    ("examples: 100", "examples: 100\nexamples: 200", "13: no valid YAML: 'examples' is given twice"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=[new[:50] for _, new, _ in BAD])
def test_bad_input_is_one_line_with_its_place(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        plan(tmp_path, GOOD.replace(old, new, 1))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/study.yaml:" + message.replace("{tmp}", str(tmp_path)))
    assert "\n" not in text


def test_a_study_that_is_not_there_or_no_study(tmp_path):
    with pytest.raises(SpecError, match=r"^cannot read the study .*nothing.yaml: No such file or directory$"):
        load_study(tmp_path / "nothing.yaml", {})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SpecError, match=r"list.yaml:1: expected a study: name, dataset, models, attacks$"):
        load_study(tmp_path / "list.yaml", {})
