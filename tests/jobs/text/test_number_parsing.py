"""Numbers in studies and options: what is one, what is none, and where a refusal points."""

from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from robustlib.arguments import RANGES
from robustq.jobs.commands.base import SEED, Counted
from robustq.jobs.errors import SpecError
from robustq.jobs.results.filters import make_filters
from robustq.jobs.specs import EvalSpec, TrainSpec
from robustq.jobs.study.study import Origin, Study, load_study
from robustq.jobs.study.yaml_with_lines import read_value, write_yaml
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.study_sources import count, parameters, radius

STUDY = """\
name: {name}
dataset: digits
train: {{objective: {objective}, epochs: 2{train}}}
models:
  {label}: {{arch: lenet5, train: {{}}{model}}}
attacks:
  - {{name: pgd{attack}}}
seeds: [{seed}]
examples: {examples}
{more}
"""
PARTS = dict(
    name="small", objective="standard", train="", label="a", model="", attack="", seed="0", examples="10", more=""
)


def read(folder: Path, parts: dict[str, str]) -> tuple[Study, Origin]:
    path = folder / "study.yaml"
    path.write_text(STUDY.format(**PARTS | parts))
    return load_study(path, {})


def study_of(folder: Path, **parts: str) -> Study:
    return read(folder, parts)[0]


def plan_of(folder: Path, **parts: str) -> list[Any]:
    return expand(resolve(*read(folder, parts), folder, folder))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Each with its type; the last columns of PyYAML's own table of numbers, and what it leaves out.
        ("2e-3", 0.002), ("1e1", 10.0), ("1E+1", 10.0), ("-1.5e3", -1500.0), (".5e1", 5.0), ("1.", 1.0), ("6.0e-4", 6e-4),
        ("10", 10), ("+7", 7), ("-0", 0), ("1_000", 1000), ("0x10", 16), ("0b11", 3), ("007", 7), ("00", 0), ("09", 9),
        ("8/255", 8 / 255), ("8 / 255", 8 / 255), ("'8/255'", 8 / 255), (".5/2.", 0.25), ("1e400", float("inf")), (".inf", float("inf")),
        ("1/0", "1/0"), ("-8/255", "-8/255"), ("8/255/2", "8/255/2"), ("1e", "1e"), ("e1", "e1"), ("'2e-3'", "2e-3"),
        ("'010'", "010"), ("'1:30'", "1:30"), ("1:x", "1:x"), ("nan", "nan"), ("inf", "inf"), ("1.2.3", "1.2.3"),
        ("yes", True), ("off", False), ("'yes'", "yes"), ("y", "y"), ("null", None), ("", None), ("[1e1, no]", [10.0, False]),
        ("{no: 1, 1e1: 2, 010: 3, 2026-11-24: 4, ~: 5}", {"no": 1, "1e1": 2, "010": 3, "2026-11-24": 4, "~": 5}),
    ],
)  # fmt: skip
def test_a_value_is_what_is_written(text: str, value: Any):
    found = read_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("010", "010 is 8 in YAML 1.1 and 10 in 1.2: write it without the leading zero, or quote the text, as '010'"),
        ("-0_17", "-0_17 is -15 in YAML 1.1 and -17 in 1.2: write it"),
        (
            "1:30",
            "1:30 is a number to the base of 60 in YAML 1.1 and text in 1.2: write the number in decimals, or quote",
        ),
        ("[1, 12:30:45.5]", "12:30:45.5 is a number to the base of 60"),
        ("<<: 3", "merge keys (<<) are not read: write the entries out"),
        ("!!python/name:os.system x: 1", "no valid YAML: could not determine a constructor"),
        ("9" * 5000, "no valid YAML: expected a number of at most 400 digits, got one of 5000"),
    ],
)
def test_what_nobody_can_be_sure_of_is_refused(text: str, message: str):
    with pytest.raises(ValueError) as caught:
        read_value(text)
    assert str(caught.value).startswith(message)


GOOD = [
    ({"attack": ", eps: 2e-3"}, lambda study: study.attacks[0].eps, (0.002,)),
    ({"attack": ", eps: [1e-1, '8/255', '0.2']"}, lambda study: study.attacks[0].eps, (0.1, 8 / 255, 0.2)),
    ({"attack": ", restarts: 2e0"}, lambda study: study.attacks[0].restarts, 2),
    ({"seed": "1e1, 3.0"}, lambda study: study.seeds, [10, 3]),
    ({"examples": "1e1"}, lambda study: study.examples, 10),
    ({"examples": "all"}, lambda study: study.examples, "all"),
    ({"more": "images: 1e0"}, lambda study: study.images, 1),
    ({"more": "timeout_seconds: 1e3"}, lambda study: study.timeout_seconds, 1000.0),
    ({"model": ", dropout_at_inference: 5e-1"}, lambda study: study.models["a"].dropout_at_inference, 0.5),
    ({"model": ", normalize: {mean: [5e-1], std: [1]}"}, lambda study: study.models["a"].normalize.std, (1.0,)),
    ({"model": ", options: {a: 2e-3, b: yes, c: [1e1]}"}, lambda study: study.models["a"].options, {"a": 0.002, "b": True, "c": [10.0]}),
    ({"name": "2024"}, lambda study: study.name, "2024"),
    ({"name": "no"}, lambda study: study.name, "no"),
    ({"name": "1e1"}, lambda study: study.name, "1e1"),
    ({"name": "2026-11-24"}, lambda study: study.name, "2026-11-24"),
    ({"label": "no"}, lambda study: [*study.models], ["no"]),
    ({"label": "010", "attack": ", surrogate: on"}, lambda study: ([*study.models], study.attacks[0].surrogate), (["010"], "on")),
    ({"label": "1e1", "model": ", defence: {name: off}"}, lambda study: study.models["1e1"].defence[0].name, "off"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "look", "value"), GOOD, ids=[str(parts) for parts, *_ in GOOD])
def test_numbers_and_names_of_a_study(tmp_path: Path, parts: dict[str, str], look: Any, value: Any):
    found = look(study_of(tmp_path, **parts))
    assert found == value
    assert [type(one) for one in found] == [type(one) for one in value] if isinstance(value, list | tuple) else True
    assert type(found) is type(value)


def test_parameters_of_an_attack_a_training_and_a_defence(tmp_path: Path):
    parts = {
        "objective": "pgd",
        "train": ", learning_rate: 2e-3, batch_size: 64.0, eps: 1e-1, steps: 3e0, step_size: 1",
    }
    parts |= {"model": ", defence: {name: bit_depth, bits: 4.0}", "attack": ", eps: 1e-1, step_size: 2e-3, steps: 1e1"}
    train, evaluation = (job.spec for job in plan_of(tmp_path, **parts) if isinstance(job.spec, TrainSpec | EvalSpec))
    assert isinstance(train, TrainSpec) and isinstance(evaluation, EvalSpec)
    kept = train.settings
    assert (kept.learning_rate, kept.batch_size, kept.epochs) == (0.002, 64, 2) and type(kept.batch_size) is int
    assert kept.attack == {"eps": 0.1, "steps": 3, "step_size": 1} and type(kept.attack["steps"]) is int
    assert kept.validation_eps == 0.1
    params = evaluation.attack.params
    assert (params["steps"], params["step_size"]) == (10, 0.002) and type(params["steps"]) is int
    bits = evaluation.model.defence[0].params["bits"]
    assert bits == 4 and type(bits) is int


def test_a_number_has_one_key_however_it_is_written(tmp_path: Path):
    def keys(**parts: str) -> set[str]:
        return {job.key for job in plan_of(tmp_path, **parts)}

    plain = keys(objective="pgd", train=", steps: 3, learning_rate: 0.002", attack=", steps: 10, eps: 0.1", seed="10")
    other = keys(
        objective="pgd", train=", steps: 3.0, learning_rate: 2e-3", attack=", steps: 1e1, eps: 1e-1", seed="1e1"
    )
    assert plain == other


BAD = [
    ({"attack": ", eps: yes"}, 7, "attacks.0.eps.0: expected a number, got yes (true)"),
    ({"attack": ", eps: [0.1, Off]"}, 7, "attacks.0.eps.1: expected a number, got Off (false)"),
    ({"attack": ", eps: true"}, 7, "attacks.0.eps.0: expected a number, got true"),
    ({"attack": ", eps: .inf"}, 7, "pgd: expected eps of at least 0 and finite, got inf"),
    ({"attack": ", eps: .nan"}, 7, "pgd: expected eps of at least 0, got nan"),
    ({"attack": ", eps: nan"}, 7, "pgd: expected eps of at least 0, got nan"),
    ({"attack": ", eps: 1e400"}, 7, "pgd: expected eps of at least 0 and finite, got inf"),
    ({"attack": ", eps: 1/0"}, 7, "attacks.0.eps.0: expected a number such as 8/255, got '1/0'"),
    ({"attack": ", eps: 'yes'"}, 7, "attacks.0.eps.0: expected a number such as 8/255, got 'yes'"),
    ({"attack": ", eps: 010"}, 7, "010 is 8 in YAML 1.1 and 10 in 1.2"),
    ({"attack": ", restarts: on"}, 7, "attacks.0.restarts: expected a whole number, got on (true)"),
    ({"attack": ", restarts: 2.5"}, 7, "attacks.0.restarts: expected a whole number, got 2.5"),
    ({"attack": ", steps: yes"}, 7, "pgd: expected steps of type int, got True (as yes, on and true are read)"),
    ({"attack": ", step_size: no"}, 7, "pgd: expected step_size of type float | None, got False (as no, off and false are read)"),
    ({"attack": ", steps: 2.5"}, 7, "pgd: expected steps of type int, got 2.5"),
    ({"attack": ", steps: 1e400"}, 7, "pgd: expected steps of type int, got inf"),
    ({"attack": ", step_size: .inf"}, 7, "pgd: expected step_size above 0 and finite, got inf"),
    ({"attack": f", steps: {10**30}"}, 7, f"pgd: expected steps below 2147483648, got {10**30}"),
    ({"attack": ", steps: 1e10"}, 7, "pgd: expected steps below 2147483648, got 10000000000"),
    ({"seed": "true"}, 8, "seeds.0: expected a whole number, got true"),
    ({"more": "shards: true"}, 10, "shards: expected a whole number, got true"),
    ({"more": "timeout_seconds: true"}, 10, "timeout_seconds: expected a number, got true"),
    ({"train": f", batch_size: {10**30}"}, 5, f"expected batch_size below 2147483648, got {10**30}"),
    ({"objective": "pgd", "train": f", steps: {2**31}"}, 5, "training on pgd: expected steps below 2147483648"),
    ({"seed": "0, yes"}, 8, "seeds.1: expected a whole number, got yes (true)"),
    ({"seed": "1:30"}, 8, "1:30 is a number to the base of 60 in YAML 1.1"),
    ({"examples": "yes"}, 9, "examples: expected a whole number, got yes (true)"),
    ({"examples": "1e30"}, 9, "examples: expected a whole number below 2147483648, got 1e30 (1e+30)"),
    ({"examples": str(10**30)}, 9, f"examples: expected fewer than 2147483648 examples or all, got {10**30}"),
    ({"examples": "'a'"}, 9, "examples: expected a whole number or all, got a"),
    ({"more": "images: yes"}, 10, "images: expected a whole number, got yes (true)"),
    ({"more": "size: yes"}, 10, "size: expected a whole number, got yes (true)"),
    ({"more": "size: [8, .inf]"}, 10, "size: expected a whole number, got "),
    ({"more": "size: [8]"}, 10, "size: expected pixels, as 256 or [224, 320], got [8]"),
    ({"more": "size: a"}, 10, "size: expected pixels, as 256 or [224, 320], got 'a'"),
    ({"model": ", normalize: yes"}, 5, "models.a.normalize: expected dataset, cifar10, "),
    ({"model": ", options: 3"}, 5, "models.a.options: expected entries as {name: value}, got 3"),
    ({"model": ", options: {dropout: yes}"}, 5, "lenet5: expected a number for the option 'dropout', got true"),
    ({"more": "batch_size: yes"}, 10, "batch_size: expected a whole number, got yes (true)"),
    ({"more": "draws: yes"}, 10, "draws: expected a whole number, got yes (true)"),
    ({"more": "eot_draws: .inf"}, 10, "eot_draws: expected a whole number, got .inf (inf)"),
    ({"more": "shards: on"}, 10, "shards: expected a whole number, got on (true)"),
    ({"more": "timeout_seconds: yes"}, 10, "timeout_seconds: expected a number, got yes (true)"),
    ({"more": "timeout_seconds: inf"}, 10, "timeout_seconds: input should be a finite number"),
    ({"model": ", dropout_at_inference: yes"}, 5, "models.a.dropout_at_inference: expected a number, got yes (true)"),
    ({"model": ", options: {width: .inf}"}, 5, "models.a.options.width: expected a finite number, got inf"),
    ({"model": ", options: {deep: [1, {x: .nan}]}"}, 5, "models.a.options.deep.1.x: expected a finite number, got nan"),
    ({"model": ", defence: {name: bit_depth, bits: yes}"}, 5, "bit_depth: expected bits of type int, got True"),
    ({"train": ", learning_rate: yes"}, 5, "expected learning_rate of type float | None, got True (as yes,"),
    ({"train": ", momentum: no"}, 5, "expected momentum of type float, got False (as no,"),
    ({"train": ", flip: 'yes'"}, 5, "expected flip to be true or false, got 'yes'"),
    ({"train": ", flip: 1"}, 5, "expected flip to be true or false, got 1"),
    ({"train": ", learning_rate: '0.1'"}, 5, "expected learning_rate of type float | None, got the text '0.1'"),
    ({"train": ", batch_size: '3'"}, 5, "expected batch_size of type int, got the text '3'"),
    ({"train": ", examples: 'al'"}, 5, "expected examples of type "),
    ({"train": ", batch_size: yes"}, 5, "expected batch_size of type int, got True (as yes,"),
    ({"train": ", examples: yes"}, 5, "expected examples of type "),
    ({"train": ", crop: 1.5"}, 5, "crop: input should be a valid integer"),
    ({"objective": "pgd", "train": ", eps: yes"}, 5, "training on pgd: expected eps of type float, got True"),
    ({"objective": "pgd", "train": ", steps: yes"}, 5, "training on pgd: expected steps of type int, got True"),
]  # fmt: skip


# What stands for a whole number, refused alike wherever it stands.
WHOLES = [
    {"attack": ", steps: {}"}, {"attack": ", restarts: {}"}, {"seed": "{}"}, {"examples": "{}"},
    *({"more": f"{name}: {{}}"} for name in ("images", "batch_size", "draws", "eot_draws", "shards")),
    *({"train": f", {name}: {{}}"} for name in ("batch_size", "examples", "validation_examples", "validation_steps")),
    {"objective": "pgd", "train": ", steps: {}"}, {"model": ", defence: {{name: bit_depth, bits: {}}}"},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("value", ["true", "no", str(10**30), "1e30", str(2**31), "2.5", ".inf"])
@pytest.mark.parametrize("parts", WHOLES, ids=[str(parts) for parts in WHOLES])
def test_booleans_and_what_no_computation_ends_with_are_no_whole_numbers(tmp_path: Path, parts: dict, value: str):
    with pytest.raises(SpecError):
        plan_of(tmp_path, **{name: text.format(value) for name, text in parts.items()})


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "line", "message"), BAD, ids=[str(parts) for parts, *_ in BAD])
def test_what_is_no_number_is_refused_with_its_line(tmp_path: Path, parts: dict[str, str], line: int, message: str):
    with pytest.raises(SpecError) as caught:
        plan_of(tmp_path, **parts)
    found = str(caught.value).removeprefix(f"{tmp_path}/study.yaml:")
    # The training block of the study is reported at the model's, where that has one.
    assert found.startswith(f"{line}: {message}"), found
    assert "\n" not in found


@pytest.mark.parametrize("written", ["2026-11-24", "[0.1]", "'wide'"])
def test_what_is_no_radius_is_told_as_it_is_written(tmp_path: Path, written: str):
    with pytest.raises(SpecError) as caught:
        plan_of(tmp_path, attack=f", eps: [{written}]")
    assert str(caught.value).endswith(f"attacks.0.eps.0: expected a number such as 8/255, got {written}")


def test_statistics_are_numbers(tmp_path: Path):
    for text in ("{mean: [yes], std: [1]}", "{mean: [0], std: [.nan]}", "{mean: [0], std: [nan]}"):
        with pytest.raises(SpecError, match=r"study.yaml:5: models.a.normalize"):
            study_of(tmp_path, model=f", normalize: {text}")


@pytest.mark.parametrize(("text", "value"), [("all", "all"), ("10", 10), ("1e3", 1000), ("010", 10), ("2.0", 2)])
def test_examples_of_the_command_line(text: str, value: Any):
    assert count(text) == value


@pytest.mark.parametrize("text", ["yes", "1.5", "1e30", "nan", "inf", "1e400", "-3", "", "ten", "9" * 5000])
def test_what_is_no_number_of_examples(text: str):
    with pytest.raises(SpecError, match=r"^--examples: expected a number or all, got "):
        count(text)


def test_radii_and_parameters_of_the_command_line():
    assert [radius(text) for text in ("2e-3", "8/255", ".5/255", "1")] == [0.002, 8 / 255, 0.5 / 255, 1.0]
    # What is no finite number is refused by the kernels' table: see test_refused_alike.py.
    assert [str(radius(text)) for text in ("nan", "inf", "1e400")] == ["nan", "inf", "inf"]
    for text in ("yes", "1/0", "-8/255", "8/255/2", ""):
        with pytest.raises(SpecError, match=r"^--eps: expected a number such as 8/255, got "):
            radius(text)
    found = parameters(
        ["steps=1e1", "step_size=2e-3", "eps=8/255", "random_start=no", "severity=[1, 2e0]", "kind=all"], {}
    )
    assert found == {
        "steps": 10.0,
        "step_size": 0.002,
        "eps": 8 / 255,
        "random_start": False,
        "severity": [1, 2.0],
        "kind": "all",
    }
    for text in ("steps=010", "steps=1:30", "steps=[1", "steps=!!python/name:os.system x"):
        with pytest.raises(SpecError, match=r"^--param: expected NAME=VALUE, got 'steps="):
            parameters([text], {})


def test_filters_know_the_same_numbers():
    make_filters(None, {"eps": ["2e-3", "8/255", ".5/255"], "seed": "1e1"}, ["eps=2e-3", "robust_accuracy<5e-1"])
    for text in ("yes", "true", "nan", ".inf", "1e400", "1/0", "./2", "1/."):
        with pytest.raises(SpecError, match=r"^eps: expected a number such as 8/255 or null, got "):
            make_filters(None, {"eps": text})


def test_whole_numbers_of_options():
    @click.command()
    @click.option("--seed", type=SEED)
    @click.option("--epochs", type=Counted(RANGES["epochs"]), default=3)
    def command(seed: int | None, epochs: int) -> None:
        click.echo(f"{seed!r} {epochs!r}")

    run = CliRunner().invoke
    assert run(command, ["--seed", "1e1", "--epochs", "2.0"]).output == "10 2\n"
    assert run(command, ["--seed", "-3"]).output == "-3 3\n"
    for words in (["--seed", "yes"], ["--seed", "1.5"], ["--seed", "1e30"], ["--epochs", "0"], ["--epochs", "nan"]):
        assert run(command, words).exit_code == 2
    assert "'--epochs': expected epochs of at least 1, got 0\n" in run(command, ["--epochs", "0"]).output


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["1e1", "2e-3", "010", "09", "1:30", "yes", "no", "0x10", ".inf", "~", "2026-11-24", "<<", "=", "1_0"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6).filter(lambda text: "/" not in text),
)  # fmt: skip
KEYS = st.sampled_from(["1e1", "010", "yes", "no", "a", "~", "1:30", "2026-11-24", "3"])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
    )
)
def test_what_is_written_reads_as_the_same(data: Any):
    """As a report shows a study: whatever looks like a number and is text is quoted."""
    text = write_yaml({"x": data})
    assert read_value(text) == {"x": data}
    assert yaml.safe_load(text) == {"x": data} or "e" in text  # 1e1 is text to PyYAML's own reader
