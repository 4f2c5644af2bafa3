"""Checkpoints as training scripts leave them: what is the model's is loaded, and said; what is not is refused, and why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.models import build
from robustlib.models.weights import load_fitting_set, load_weights
from tests.helpers.small_weights import Weights, Wrapped, behind, numbers, refused, same, saved, small, took

PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "net.", "module.model.", "_orig_mod.module.", "model._orig_mod.",
            "module.backbone._orig_mod.", "net.module.net.", "ema_model.module."]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("within", [None, "state_dict", "model", "net", "model_state_dict", "ema"])
def test_prefixes_and_the_dict_around_them(prefix: str, within: str | None, tmp_path: Path):
    given = behind(prefix, numbers())
    content = given if within is None else {within: given, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}}
    model, line = took(saved(content, tmp_path))
    assert same(model, numbers())
    assert line == (f"took {within!r}, " if within else "") + f"'{prefix}0.weight' as '0.weight' and so on"


def test_what_is_simply_the_models_needs_no_words(tmp_path: Path):
    model, line = took(saved(numbers(), tmp_path))
    assert same(model, numbers()) and line == ""


def test_wrappers_within_names(tmp_path: Path):
    """DataParallel around a part, as in PyTorch's ImageNet example; FSDP and compiled blocks."""
    middle = {
        name.replace("0.", "0._fsdp_wrapped_module.").replace("4.", "4.module."): v for name, v in numbers().items()
    }
    model, line = took(saved(middle, tmp_path))
    assert same(model, numbers()) and "as '0.weight' and so on" in line


def test_bare_weights_into_a_network_that_wraps_the_layers(tmp_path: Path):
    model, line = took(saved(numbers(), tmp_path), Wrapped())
    assert same(model, behind("net.", numbers()))
    assert line == "'0.weight' as 'net.0.weight' and so on, 'mean', 'std' as the model's code sets them"
    model, line = took(saved({"state_dict": behind("module.", numbers())}, tmp_path), Wrapped(inner="body"))
    assert same(model, behind("body.", numbers()))
    model, _ = took(saved(numbers(), tmp_path), nn.DataParallel(small()))
    assert same(model, behind("module.", numbers()))


def test_a_layer_that_would_stay_untrained_is_not_passed_over(tmp_path: Path):
    line = refused(saved(numbers(), tmp_path), Wrapped(learnt=True))
    assert "tensors missing, first 'first.running_mean'" in line


def test_counters_that_are_missing_are_filled_in(tmp_path: Path):
    without = {name: value for name, value in numbers().items() if "num_batches" not in name}
    model, line = took(saved(without, tmp_path))
    assert same(model, without) and line == "1 num_batches_tracked filled in"


def test_a_tensor_under_two_names_is_there_once(tmp_path: Path):
    """As safetensors.torch.save_model writes it."""
    layer = nn.Linear(3, 3)
    tied, given = nn.ModuleDict({"a": layer, "b": layer}), {"a.weight": torch.rand(3, 3), "a.bias": torch.rand(3)}
    model, _ = took(saved(given, tmp_path), tied)
    assert same(model, given) and torch.equal(model.state_dict()["b.weight"], given["a.weight"])
    apart = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    assert "2 tensors missing, first 'b.bias', 'b.weight'" in refused(saved(given, tmp_path), apart)


def test_two_sets_and_the_key_that_chooses(tmp_path: Path):
    both = {"state_dict": numbers(), "state_dict_ema": numbers(1), "arch": "small"}
    path = saved(both, tmp_path)
    assert refused(path) == (
        f"weights {path} hold several sets that fit the model, 'state_dict', 'state_dict_ema': choose one, such as "
        f"--weights {path}:state_dict_ema (in a study `weights: FILE:KEY`)"
    )
    for entry, seed in (("state_dict", 0), ("state_dict_ema", 1)):
        model, line = took(path, entry=entry)
        assert same(model, numbers(seed)) and line == f"took {entry!r}"
    assert refused(path, entry="ema") == (
        f"weights {path} have no entry 'ema' with tensors, they have: 'state_dict', 'state_dict_ema'"
    )


@pytest.mark.parametrize(
    ("content", "entries"),
    [
        ({"teacher": numbers(), "student": numbers(1)}, ["teacher", "student"]),
        ({"ema": {"module": numbers()}, "model": numbers(1)}, ["ema.module", "model"]),
        ({"state_dict": behind("teacher.", numbers()) | behind("student.", numbers(1))}, ["state_dict.teacher", "state_dict.student"]),
        (behind("teacher.", numbers()) | behind("student.", numbers(1)), ["teacher", "student"]),
        ({"model": numbers(), "model_ema": numbers()}, ["model", "model_ema"]),  # also where they are equal
    ],
    ids=["pair", "ema of timm", "prefixes within", "prefixes at the top", "equal"],
)  # fmt: skip
def test_several_sets(content: Any, entries: list[str], tmp_path: Path):
    path = saved(content, tmp_path)
    line = refused(path)
    assert all(f"'{entry}'" in line for entry in entries) and "choose one" in line
    first, _ = took(path, entry=entries[0])
    assert same(first, numbers())


def test_the_set_that_fits_is_taken_and_others_are_not(tmp_path: Path):
    """A student of another shape, an optimizer with tensors by name, and what is nested two dicts deep."""
    other = nn.Linear(3, 2).state_dict()
    model, line = took(saved({"nets": {"student": other, "teacher": numbers()}, "optimizer": other}, tmp_path))
    assert same(model, numbers()) and line == "took 'nets.teacher'"


LIGHTNING = {
    "epoch": 3, "pytorch-lightning_version": "2.1", "hyper_parameters": {"lr": 0.1}, "loops": {},
    "state_dict": behind("model.", numbers()) | {"criterion.weight": torch.ones(10), "val_acc.correct": torch.zeros(1)},
}  # fmt: skip


def test_lightning_and_its_losses_and_metrics(tmp_path: Path):
    model, line = took(saved(LIGHTNING, tmp_path, "last.ckpt"))
    assert same(model, numbers())
    assert line == (
        "took 'state_dict', 'model.0.weight' as '0.weight' and so on, left out 2 that the model has no place for, "
        "first 'criterion.weight'"
    )


def test_an_averaged_model(tmp_path: Path):
    averaged = torch.optim.swa_utils.AveragedModel(small())
    model, line = took(saved(averaged.state_dict(), tmp_path))
    assert "first 'n_averaged'" in line and same(model, {k: v for k, v in averaged.module.state_dict().items()})


def attacker(mean: float = 0.3) -> Weights:
    """As MadryLab's robustness saves: the network twice, each time behind the same normalisation."""
    names = {"normalizer.new_mean": mean, "normalizer.new_std": 0.5, "attacker.normalize.new_mean": mean, "attacker.normalize.new_std": 0.5}  # fmt: skip
    found = {name: torch.full((1, 1, 1), value) for name, value in names.items()}
    return behind("module.", found | behind("model.", numbers()) | behind("attacker.model.", numbers()))


def test_a_normalisation_beside_the_network_is_not_dropped(tmp_path: Path):
    path = saved({"model": attacker(), "epoch": 3}, tmp_path)
    assert refused(path) == (
        f"weights {path} were trained behind a normalisation, 'normalizer.new_mean', 'normalizer.new_std', that the model "
        "has not: say `normalize: {mean: [0.3], std: [0.5]}` (or --mean and --std); where its code does so already, "
        f"--weights {path}:model.model"
    )
    alone, _ = took(path, entry="model.model")
    assert same(alone, numbers())
    inside, line = took(path, Wrapped())  # it has the same
    assert same(inside, behind("net.", numbers())) and "left out 9 that" in line
    assert "that the model has not" in refused(path, Wrapped(mean=0.4))


def test_a_normalisation_becomes_the_first_layer_of_a_network_by_name(tmp_path: Path):
    facts = {"in_channels": 1, "num_classes": 3, "image_size": (8, 8)}
    net = build(arch="lenet5", **facts).get_submodule("net").state_dict()
    given = behind("model.", net) | {"normalizer.mean": torch.tensor([0.25]), "normalizer.std": torch.tensor([0.5])}
    path, said = saved(given, tmp_path), []
    state = build(arch="lenet5", weights=path, tell=said.append, **facts).state_dict()
    assert (state["normalize.mean"].item(), state["normalize.std"].item()) == (0.25, 0.5)
    assert "'normalizer.mean', 'normalizer.std' as the model's first layer" in said[0]
    build(arch="lenet5", weights=path, normalize=([0.25], [0.5]), **facts)
    with pytest.raises(ValueError, match="that the model has not: say"):
        build(arch="lenet5", weights=path, normalize=([0.2], [0.5]), **facts)


@pytest.mark.parametrize("name", ["data_preprocessor", "normalize"])
def test_a_normalisation_of_images_from_0_to_255_is_no_first_layer(name: str, tmp_path: Path):
    """As MMPretrain's preprocessors have it."""
    facts = {"in_channels": 1, "num_classes": 3, "image_size": (8, 8)}
    net = behind("backbone.", build(arch="lenet5", **facts).get_submodule("net").state_dict())
    net = {name.replace("backbone.", "net."): value for name, value in net.items()} if name == "normalize" else net
    given = net | {f"{name}.mean": torch.tensor([[[123.675]]]), f"{name}.std": torch.tensor([[[58.4]]])}
    with pytest.raises(ValueError, match=f"hold the normalisation '{name}.mean', .* divide both by 255"):
        build(arch="lenet5", weights=saved({"state_dict": given}, tmp_path), **facts)


def test_one_tensor_of_the_model_is_given_one_way(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    given = {name: value.clone() for name, value in Tied().state_dict().items()}
    model, _ = took(saved(given, tmp_path), Tied())
    assert same(model, given)
    path = saved(given | {"b.weight": given["b.weight"] + 1}, tmp_path)
    with pytest.raises(ValueError, match=r"'a.weight' and 'b.weight' differ, and are one tensor of it$"):
        load_weights(Tied(), path)


def test_what_may_change_the_numbers_is_not_dropped(tmp_path: Path):
    """A head, a temperature, a purifier: the model would compute something else without them."""
    for extra in ("head.weight", "temperature", "purifier.0.weight", "normalizer.mean"):
        path = saved(behind("model.", numbers()) | {extra: torch.ones(4)}, tmp_path)
        line = refused(path)
        assert f"1 tensor too many, first {extra!r}, which may change what it computes" in line
        model, _ = took(path, entry="model")
        assert same(model, numbers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_copied(dtype: torch.dtype, tmp_path: Path):
    given = {name: v.to(dtype) if v.is_floating_point() else v for name, v in numbers().items()}
    model, line = took(saved(given, tmp_path))
    assert same(model, given) and {p.dtype for p in model.parameters()} == {torch.float32}
    assert line == f"{str(dtype).removeprefix('torch.')} as float32"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: (v * 10).to(torch.int8), "holds whole numbers (int8): it is quantised"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "is quantised"),
        (lambda v: v.to(torch.complex64), "is complex"),
        (lambda v: v.to_sparse(), "is sparse"),
        (lambda v: v.to("meta"), "lies on the meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_tensors_that_hold_other_numbers_are_refused(change: Callable[[Tensor], Tensor], words: str, tmp_path: Path):
    given = {name: change(v) if name == "4.weight" else v for name, v in numbers().items()}
    assert f"'4.weight' {words}" in refused(saved(given, tmp_path))


def test_a_model_without_tensors(tmp_path: Path):
    assert "it has no tensors to load" in refused(saved(numbers(), tmp_path), nn.Flatten())


def test_names_that_mean_something_else_elsewhere(tmp_path: Path):
    """A network whose own parts are called as wrappers call theirs, beside a part of the same name without."""
    odd = nn.ModuleDict({"module": nn.Linear(2, 2), "net": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    given = {name: torch.rand_like(value) for name, value in odd.state_dict().items()}
    odd, line = took(saved(given, tmp_path), odd)
    assert same(odd, given) and line == ""
    load_fitting_set(odd, {"": given}, "here")
