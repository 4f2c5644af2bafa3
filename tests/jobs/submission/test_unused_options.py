"""What a study or a command says and nothing would use is refused, in one line that names it."""

import hashlib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from robustlib import KERNEL_VERSION
from robustlib.models import build
from robustlib.settings import TrainSettings
from robustq import cli
from robustq.jobs.errors import SpecError
from robustq.jobs.specs import EvalSpec, FileRef, ModelSpec, TrainSpec
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.text.canonical_json import canonical

STUDY = """\
name: s
{top}
models:
  a: {{{model}}}
attacks:
  - {{{attack}}}
examples: 10
"""
GIVEN = "arch: lenet5, weights: w.pt"
MINE = "file: 'm.py:build'"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.save(model.get_submodule("net").state_dict(), tmp_path / "bare.pt")
    (tmp_path / "m.py").write_text(
        "import torch\n"
        "def build(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "def answers(): return lambda x: x.flatten(1)[:, :10]\n"
        "class Cut(torch.nn.Sequential):\n"
        "    def forward(self, x): return super().forward(x).detach()\n"
        "def cut(): return Cut(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    return tmp_path


def planned(folder: Path, text: str, changes: dict | None = None):
    path = folder / "s.yaml"
    path.write_text(text)
    study, origin = load_study(path, changes or {})
    return expand(resolve(study, origin, folder, folder))


def refusal(folder: Path, top: str = "seeds: [0]", model: str = GIVEN, attack: str = "name: clean", **changes) -> str:
    with pytest.raises(SpecError) as caught:
        planned(folder, STUDY.format(top=top, model=model, attack=attack), changes)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/s.yaml:")


TRAINED = "arch: lenet5, train: {optimizer: adam}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"top": "train: {epochs: 3}"}, "2: train has no effect: no model of the study is trained, which `train: {}` in its entry asks for"),
        ({"top": "draws: 50"}, "2: draws has no effect: no model of the study is randomised"),
        ({"top": "eot_draws: 20"}, "2: eot_draws has no effect: no model of the study is randomised"),
        ({"top": "draws: 50", "model": MINE, "attack": "name: audit, eps: 0.1"}, "2: draws has no effect: audits and certificates have their own"),
        ({"top": "draws: 50", "model": MINE, "attack": "name: explain, eps: 0.1"}, "2: draws has no effect: explanations have none"),
        ({"top": "batch_size: 5", "attack": "name: audit, eps: 0.1"}, "2: batch_size has no effect: the batches of audits and certificates are their own"),
        ({"top": "batch_size: 5", "model": f"{GIVEN}, defence: {{name: noise}}"}, "2: batch_size has no effect: the batches of randomised models are their own"),
        ({"top": "shards: 2", "attack": "name: audit, eps: 0.1"}, "2: shards has no effect: an audit is not split"),
        ({"top": "audit: full", "attack": "name: deepfool"}, "2: audit: full has no effect: no attack has a norm and a radius above 0"),
        ({"attack": "name: clean, restarts: 2"}, "6: clean has no restarts: it does the same again"),
        ({"attack": "name: deepfool, restarts: 2"}, "6: restarts has no effect: deepfool is deterministic here, and no model is randomised: its restarts are all the same"),
        ({"attack": "name: pgd, random_start: false, restarts: 2"}, "6: restarts has no effect: pgd is deterministic here, and no model is randomised: its restarts are all the same"),
        ({"model": "arch: lenet5, train: {optimizer: adam, momentum: 0.5}"}, "4: momentum has no effect: optimizer is adam, and only sgd has one"),
        ({"top": "train: {momentum: 0.5}", "model": TRAINED}, "2: momentum has no effect: every optimizer is adam, and only sgd has one"),
        ({"model": "file: 'm.py:answers', train: {}"}, "4: train has no effect: the model has no parameters that could be trained"),
        ({"model": "file: 'm.py:cut', train: {}"}, "4: train has no effect: the model's answer has no gradient that reaches its parameters"),
        ({"model": "file: 'm.py:answers', dropout_at_inference: 0.5"}, "4: dropout_at_inference needs a model with dropout layers, this one has none"),
        ({"model": "arch: lenet5, weights: w.pt, options: {num_classes: 10}"}, "4: expected no option 'num_classes': lenet5 has it from the study or the data set"),
    ],
)  # fmt: skip
def test_a_study_that_says_what_nothing_uses(folder: Path, given: dict, line: str):
    assert refusal(folder, **given) == line


def test_weights_of_what_only_answers(folder: Path):
    line = refusal(folder, model="file: 'm.py:answers', weights: w.pt")
    assert (
        line
        == f"4: weights {folder}/w.pt have no effect: {folder}/m.py:answers only answers, and its numbers lie elsewhere"
    )


def test_epochs_where_nothing_is_trained(folder: Path):
    assert refusal(folder, epochs=3) == f"--epochs has no effect: {folder}/s.yaml trains no model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"top": "train: {epochs: 3, momentum: 0.5}", "model": "arch: lenet5, train: {}"},
        {"top": "draws: 50", "model": MINE},  # a user's code may be randomised
        {"top": "draws: 50", "model": f"{GIVEN}, dropout_at_inference: 0.5"},
        {"top": "batch_size: 5"},
        {"top": "audit: full", "attack": "name: pgd, eps: 0.1"},
        {"attack": "name: pgd, restarts: 2"},
        {"attack": "name: deepfool, restarts: 2", "model": f"{GIVEN}, defence: {{name: noise}}"},
    ],
)
def test_what_some_of_it_uses_is_fine(folder: Path, given: dict):
    assert planned(folder, STUDY.format(**({"top": "", "model": GIVEN, "attack": "name: clean"} | given)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "s.yaml", "--insecure"], "--insecure has no effect without --address"),
        (["run", "s.yaml", "--dry-run", "--priority", "3"], "--priority has no effect with --dry-run, which runs nothing"),
        (["submit", "s.yaml", "--insecure"], "--insecure has no effect without --cluster"),
        (["drive", "--insecure"], "--insecure has no effect without --address"),
        (["status", "--insecure"], "--insecure has no effect without --cluster"),
        (["cancel", "1", "--sweep", "s"], "expected numbers of jobs or --sweep NAME, got both"),
        (["retry", "1", "--sweep", "s"], "expected numbers of jobs or --sweep NAME, got both"),
        (["prioritise", "5", "1", "--sweep", "s"], "expected numbers of jobs or --sweep NAME, got both"),
        (["results", "--json", "--format", "csv"], "--format has no effect with --json: expected one of them"),
        (["list", "attacks", "--torchvision"], "--torchvision has no effect on attacks: it is for models"),
        (["replay", "--job", "1", "--draw", "3"], "--draw has no effect with --job, which says what to run"),
        (["replay", "7", "--job", "1"], "NUMBER has no effect with --job, which says what to run"),
        (["attack", "lenet5", "--param", "name=fgsm"], "--param: name is said by --attack, got 'name=fgsm'"),
        (["attack", "lenet5", "--eps", "0.1", "--param", "eps=0.2"], "--param: eps is said by --eps, got 'eps=0.2'"),
        (["attack", "lenet5", "--param", "steps=2", "--param", "steps=3"], "--param: steps is given twice"),
        (["train", "lenet5", "--param", "epochs=3"], "--param: epochs is said by --epochs, got 'epochs=3'"),
        (["attack", "m.py:build", "--mean", "0.5"], "expected --mean and --std, got --mean alone"),
        (["attack", "m.py:build", "--normalize", "cifar10", "--std", "1"], "expected --normalize or --mean and --std, got both"),
    ],
)  # fmt: skip
def test_a_command_that_says_what_it_does_not_use(folder: Path, words: list[str], line: str):
    from robustq.jobs.store.connection import open_store

    (folder / "s.yaml").write_text(STUDY.format(top="", model=GIVEN, attack="name: clean"))
    open_store("r.db", create=True, write=True)
    found = CliRunner().invoke(cli.main, ["--store", "r.db", *words], prog_name="robustq")
    assert (found.exit_code, found.stdout, found.stderr) == (2, "", f"robustq: {line}\n")


STATISTICS = [
    ("{mean: 0.5, std: 0}", "expected a standard deviation above 0 and finite, got 0"),
    ("{mean: 0.5, std: -1}", "expected a standard deviation above 0 and finite, got -1"),
    ("{mean: 0.5, std: .inf}", "expected a standard deviation above 0 and finite, got inf"),
    ("{mean: .nan, std: 1}", "expected a finite mean, got nan"),
    ("{mean: [123.675], std: [58.4]}", "expected a mean of images in [0, 1], got 123.675: where mean and std are on the "
     "scale of 0 to 255, divide both by 255"),
    ("{mean: [0.5, 0.5], std: [1, 1, 1]}", "expected as many means as standard deviations, got 2 and 3"),
    ("{mean: 0.5}", "expected mean and std, got mean"),
    ("{mean: half, std: 1}", "expected numbers of mean, one a channel or one for all, got 'half'"),
    ("cifar", "expected dataset, cifar10, cifar100, imagenet or {mean: [...], std: [...]}, got 'cifar': did you mean 'cifar10'?"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "line"), STATISTICS)
@pytest.mark.parametrize("model", [GIVEN, MINE])
def test_statistics_that_are_none(folder: Path, model: str, value: str, line: str):
    assert refusal(folder, model=f"{model}, normalize: {value}") == f"4: models.a.normalize: {line}"


@pytest.mark.parametrize("model", [GIVEN.replace("w.pt", "bare.pt"), MINE])
def test_statistics_of_other_images(folder: Path, model: str):
    assert refusal(folder, model=f"{model}, normalize: imagenet") == (
        "4: expected normalize to have 1 value of mean, one a channel of the images, or one for all, got 3"
    )


def test_weights_that_carry_another_first_layer(folder: Path):
    line = "4: normalize has no effect: the weights carry their own first layer (mean 0, std 1); leave it out"
    assert refusal(folder, model=f"{GIVEN}, normalize: {{mean: 0.5, std: 0.5}}") == line
    assert planned(folder, STUDY.format(top="", model=f"{GIVEN}, normalize: {{mean: 0, std: 1}}", attack="name: clean"))


def spec_of(folder: Path, model: str) -> ModelSpec:
    (job,) = planned(folder, STUDY.format(top="", model=model, attack="name: clean"))
    assert isinstance(job.spec, EvalSpec)
    return job.spec.model


@pytest.mark.slow
def test_results_from_when_normalize_of_code_was_ignored_stand_for_nothing(folder: Path):
    """Neither a job nor a whole study of that time is taken for the same."""
    old = spec_of(folder, MINE)
    new = spec_of(folder, f"{MINE}, normalize: {{mean: 0.5, std: 0.5}}")
    ignored = ModelSpec.model_validate(new.model_dump() | {"first_layer": False})
    assert len({old.key(), new.key(), ignored.key()}) == 3
    assert "first_layer" not in old.model_dump() and "first_layer" not in ignored.model_dump()
    for model, same in ((MINE, True), (f"{MINE}, normalize: {{mean: 0.5, std: 0.5}}", False)):
        (folder / "s.yaml").write_text(STUDY.format(top="", model=model, attack="name: clean"))
        study, origin = load_study(folder / "s.yaml", {})
        found = resolve(study, origin, folder, folder)
        code = found.models["a"].code
        assert code is not None
        then = [KERNEL_VERSION, study.model_dump(mode="json"), found.data.sha256, [None, code.sha256]]
        assert (hashlib.sha256(canonical(then).encode()).hexdigest() == found.identity) == same


def test_one_number_stands_for_all_channels_and_a_name_for_its_numbers(folder: Path):
    one = spec_of(folder, f"{MINE}, normalize: {{mean: 0.5, std: 1/4}}").normalize
    assert one == spec_of(folder, f"{MINE}, normalize: {{mean: [0.5], std: [0.25]}}").normalize


def test_the_key_of_a_weights_file_changes_only_with_the_chosen_set(folder: Path):
    torch.save({"ema": torch.load(folder / "bare.pt"), "net": torch.load(folder / "bare.pt")}, folder / "two.pt")
    chosen = [spec_of(folder, f"arch: lenet5, weights: 'two.pt:{entry}'") for entry in ("ema", "net")]
    assert chosen[0].key() != chosen[1].key()
    plain = FileRef(place="/w.pt", sha256="0" * 64)
    assert plain.model_dump() == {"place": "/w.pt", "sha256": "0" * 64}
    (folder / "two.pt:ema").write_bytes((folder / "bare.pt").read_bytes())  # a file of that name wins
    weights = spec_of(folder, "arch: lenet5, weights: 'two.pt:ema'").weights
    assert weights is not None and (weights.place, weights.entry) == (f"{folder}/two.pt:ema", None)
    assert refusal(folder, model="arch: lenet5, weights: 'none.pt:ema'").startswith("4: there is no weights file")


def test_what_was_taken_is_said_once_a_model(folder: Path, capsys: pytest.CaptureFixture):
    torch.save({"state_dict": torch.load(folder / "bare.pt"), "epoch": 3}, folder / "nested.pt")
    spec_of(folder, "arch: lenet5, weights: nested.pt")
    assert capsys.readouterr().err == f"weights {folder}/nested.pt: took 'state_dict'\n"


ONE_OF_TWO = """\
name: s
train: {{{top}}}
models:
  plain: {{arch: lenet5, train: {{objective: standard}}}}
  robust: {{arch: lenet5, train: {{{own}}}}}
attacks:
  - {{name: clean}}
examples: 10
"""


def test_attack_parameters_for_all_are_for_the_models_that_take_them(folder: Path):
    jobs = planned(folder, ONE_OF_TWO.format(top="objective: pgd, eps: 0.1, steps: 3, epochs: 2", own=""))
    found = {job.model: job.spec.settings for job in jobs if isinstance(job.spec, TrainSpec)}
    assert (found["plain"].objective, found["plain"].attack, found["plain"].epochs) == ("standard", {}, 2)
    assert (found["robust"].objective, found["robust"].attack, found["robust"].epochs) == (
        "pgd",
        {"eps": 0.1, "steps": 3},
        2,
    )
    assert (found["plain"].validation_eps, found["robust"].validation_eps) == (TrainSettings.validation_eps, 0.1)


@pytest.mark.parametrize(
    ("top", "own", "line"),
    [
        ("epz: 0.1", "objective: pgd", "training has no setting 'epz'"),
        ("eps: 0.1", "epochs: 2", "training has no setting 'eps'"),
        ("epochs: imagenet", "objective: pgd, epochs: 2", "epochs"),
        ("epochs: yes", "objective: pgd, epochs: 2", "epochs"),
    ],
)
def test_attack_parameters_that_no_model_takes(folder: Path, top: str, own: str, line: str):
    with pytest.raises(SpecError, match=line):
        planned(folder, ONE_OF_TWO.format(top=top, own=own))


def test_a_default_that_every_model_overrides_is_said(folder: Path, capsys: pytest.CaptureFixture[str]):
    """As a study that grows comes to have one: it is no reason to refuse it."""
    planned(folder, ONE_OF_TWO.format(top="eps: 0.1", own="objective: pgd, eps: 0.2"))
    said = "train: eps: 0.1 has no effect: every model whose objective takes it says its own"
    assert said in capsys.readouterr().err.splitlines()
