"""Checkpoints as training scripts leave them: what is the model's is loaded, and said; what is not is refused, and why."""

import argparse
import collections
import datetime
import io
import json
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustlib.models import build
from robustlib.models.checkpoints import read_weights
from robustlib.models.weights import load_fitting_set, load_weights

Weights = dict[str, Tensor]


def small() -> nn.Sequential:
    """A network with statistics that it learns, and a counter beside them."""
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    return nn.Sequential(*layers).eval()


def numbers(seed: int = 0) -> Weights:
    """Weights of `small`, every number of them another than a fresh network's."""
    torch.manual_seed(seed)
    own = small().state_dict()
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else torch.tensor(7) for k, v in own.items()}


def behind(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def saved(content: Any, tmp_path: Path, name: str = "w.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(model: nn.Module, weights: Weights) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], value.to(state[name])) for name, value in weights.items())


def took(path: Path, model: nn.Module | None = None, entry: str | None = None, **how: Any) -> tuple[nn.Module, str]:
    """The loaded model and the line that says what was taken, without the file's name."""
    model, said = model or small(), []
    load_weights(model, path, entry, tell=said.append, **how)
    assert len(said) <= 1 and all("\n" not in line for line in said)
    return model, said[0].removeprefix(f"weights {path}: ") if said else ""


def refused(path: Path, model: nn.Module | None = None, entry: str | None = None, **how: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_weights(model or small(), path, entry, **how)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


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


class Wrapped(nn.Module):
    """A user's network around another: with constants of its own, or with a layer that learns."""

    def __init__(self, learnt: bool = False, inner: str = "net", mean: float = 0.3):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1), mean))
        self.register_buffer("std", torch.full((1, 1, 1), 0.5))
        self.add_module(inner, small())
        if learnt:
            self.first = nn.BatchNorm2d(1, affine=False)


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


def test_a_file_decides_no_method_of_what_it_holds(tmp_path: Path):
    """Torch lets it set attributes of an OrderedDict and of a parameter, of whatever name."""

    class Named(collections.OrderedDict[str, Any]):
        def __reduce__(self) -> Any:
            return collections.OrderedDict, (), {"items": argparse.Namespace}, None, iter([("0.weight", value)])

    value = nn.Parameter(torch.ones(2))
    value.numel = value.detach = argparse.Namespace  # pyright: ignore[reportAttributeAccessIssue]
    (weights,) = read_weights(saved(Named(), tmp_path)).values()
    assert weights["0.weight"].numel() == 2 and not vars(weights["0.weight"])


def test_what_may_change_the_numbers_is_not_dropped(tmp_path: Path):
    """A head, a temperature, a purifier: the model would compute something else without them."""
    for extra in ("head.weight", "temperature", "purifier.0.weight", "normalizer.mean"):
        path = saved(behind("model.", numbers()) | {extra: torch.ones(4)}, tmp_path)
        line = refused(path)
        assert f"1 tensors too many, first {extra!r}, which may change what it computes" in line
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


def written(save: Callable[..., object], content: Any) -> bytes:
    file = io.BytesIO()
    save(file, content)
    return file.getvalue()


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def cut(path: Path, content: Any = None, least: int = 300) -> None:
    torch.save(numbers() if content is None else content, path)
    path.write_bytes(path.read_bytes()[:-least])


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is empty: download or copy it again"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "is a Git LFS pointer, and not the file: fetch that with `git lfs pull`"),
    "html": (lambda p: p.write_text("\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>"), "is HTML: a web page was saved instead of the file; download the file itself"),
    "xml": (lambda p: p.write_text("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"), "is XML, perhaps the answer of a server that had an error: download or copy it again"),
    "json": (lambda p: p.write_text(json.dumps({"weight_map": {}})), "is an index of shards: load the model from them where its code is, and torch.save(model.state_dict(), 'weights.pt')"),
    "an answer": (lambda p: p.write_text(json.dumps({"error": 1})), "is JSON, perhaps an index of shards or the answer of a server: expected the file of weights itself"),
    "text": (lambda p: p.write_text("404: Not Found"), "is a text file, and no weights: download or copy it again"),
    "whole module": (lambda p: torch.save(small(), p), "holds a whole pickled module (torch.nn.modules.container.Sequential), which runs code when it is loaded: where its code is, load it with torch.load(FILE, weights_only=False) and save its weights alone with torch.save(model.state_dict(), 'weights.pt')"),
    "module in a dict": (lambda p: torch.save({"model": Wrapped(), "epoch": 3}, p), f"holds a whole pickled module ({Wrapped.__module__}.Wrapped), which runs code"),
    "older whole module": (lambda p: torch.save(small(), p, _use_new_zipfile_serialization=False), "holds a whole pickled module (torch.nn.modules.container.Sequential)"),
    "script": (lambda p: zipped(p, "w/data.pkl", "w/code/__torch__.py", "w/constants.pkl"), "is a TorchScript archive, which holds code: save its weights alone with torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"),
    "exported": (lambda p: zipped(p, "w/models/model.json", "w/archive_format"), "is a program of torch.export: save the weights of its module"),
    "npz": (lambda p: p.write_bytes(written(np.savez, np.zeros(3))), "is a NumPy .npz archive"),
    "npy": (lambda p: p.write_bytes(written(np.save, np.zeros(3))), "is a NumPy array (.npy)"),
    "keras": (lambda p: zipped(p, "config.json", "model.weights.h5"), "is a Keras archive"),
    "h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "is an HDF5 file, as Keras writes"),
    "zip": (lambda p: zipped(p, "readme.txt", "weights/w.pt"), "is a ZIP archive with 'readme.txt', 'weights/w.pt': unpack it first, and name the file of weights in it"),
    "onnx": (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(50)), "is an ONNX model: load the original network where its code is"),
    "tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(50)), "is a TensorFlow Lite model"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "is compressed with gzip: unpack it first"),
    "cut off": (cut, "is cut off: the end of its ZIP archive is missing; download or copy it again"),
    "larger cut off": (lambda p: cut(p, {"w": torch.zeros(8000)}), "is cut off: the end of its ZIP archive is missing; download or copy it again"),
    "only its head": (lambda p: cut(p, None, 5000), "is cut off"),
    "plain pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a pickle that torch.save did not write"),
    "other bytes": (lambda p: p.write_bytes(bytes(range(200, 256))), "is no file of weights of a kind that is known: expected safetensors or what torch.save writes, got bytes that begin with c8 c9 ca cb cc cd ce cf"),
    "one tensor": (lambda p: torch.save(torch.zeros(3), p), "holds one tensor of shape (3,), and no tensors by name: save them with torch.save(model.state_dict(), 'weights.pt')"),
    "no tensors": (lambda p: torch.save({"epoch": 3, "lr": [1]}, p), "holds a dict with the entries 'epoch', 'lr', and no tensors by name"),
    "list": (lambda p: torch.save([torch.zeros(1)], p), "holds a list, and no tensors by name"),
    "function": (lambda p: torch.save({"a": torch.zeros(1), "f": json.dumps}, p), "holds json.dumps beside its tensors, which may run code when it is loaded"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "model.pth.tar"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_is_and_the_way_out(kind: str, name: str, tmp_path: Path):
    make, words = KINDS[kind]
    make(tmp_path / name)
    assert refused(tmp_path / name).removeprefix(f"{tmp_path / name} ").startswith(words)


def test_more_kinds_of_file(tmp_path: Path):
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("w.pt"), io.BytesIO())
    assert "is a tar archive: unpack it first" in refused(tmp_path / "w.tar")
    older = tmp_path / "older.pt"
    torch.save(numbers(), older, _use_new_zipfile_serialization=False)
    model, _ = took(older)
    assert same(model, numbers())
    older.write_bytes(older.read_bytes()[:-2000])
    assert "is cut off or broken" in refused(older)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").touch()
    assert refused(tmp_path / "folder").endswith("is a folder: expected one of those in it: model.safetensors")
    torch.save(numbers(), tmp_path / "p4.pt", pickle_protocol=4)
    assert "was saved with a pickle protocol that is not torch's own" in refused(tmp_path / "p4.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors"])
def test_content_decides_and_not_the_ending(name: str, tmp_path: Path):
    path = tmp_path / name
    for save in (safetensors.torch.save_file, torch.save):
        save(numbers(), path)
        assert same(took(path)[0], numbers())
    safetensors.torch.save_file(numbers(), path)
    whole = path.stat().st_size
    for size in (whole - 300, 200):
        path.write_bytes(path.read_bytes()[:size])
        assert f"is a safetensors file that is cut off: {size} bytes of " in refused(path)


class Own(str):
    """What a training script defines itself."""


BESIDE = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1")),
    "acc": np.float64(0.9),
    "history": np.arange(3),
    "when": datetime.datetime(2024, 1, 2),
    "log": collections.defaultdict(list, {"loss": [1.0]}),
    "last": collections.deque([1, 2], maxlen=5),
    "counts": collections.Counter("abc"),
    "rng": (torch.get_rng_state(), np.random.get_state()),
}


@pytest.mark.slow
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("newer", [True, False])
def test_plain_data_beside_the_tensors(beside: str, newer: bool, tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": numbers(), beside: BESIDE[beside]}, path, _use_new_zipfile_serialization=newer)
    assert same(took(path)[0], numbers())


def test_stand_ins_run_nothing_and_leave_no_trace(tmp_path: Path):
    """What stands for a class of plain data is none, and torch.load elsewhere is as it was."""
    path = saved({"state_dict": numbers(), "args": argparse.Namespace(lr=1)}, tmp_path)
    before = set(torch.serialization.get_safe_globals())
    read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


class Trap:
    """Calls a function that is let in by name with arguments of an attacker's choice."""

    def __init__(self, called: Any, *args: Any):
        self.called, self.args = called, args

    def __reduce__(self) -> Any:
        return self.called, self.args


def test_a_name_that_is_let_in_is_not_called(tmp_path: Path):
    """`getattr` stands among plain data in some checkpoints: here it would find a way to anything."""
    path = saved({"state_dict": numbers(), "x": Trap(getattr, pathlib.Path, "home")}, tmp_path)
    assert torch.load(path, weights_only=False)["x"] == pathlib.Path.home
    assert list(read_weights(path)) == ["state_dict"]


NAMES = st.sampled_from(
    ["0.weight", "1.running_mean", "4.bias", "state_dict", "model.0.weight", "mean", "std", "", "."]
)
LEAVES = st.one_of(
    st.none(), st.integers(), st.text(max_size=3), st.builds(torch.zeros, st.integers(0, 3)),
    st.builds(lambda n: torch.zeros(n, dtype=torch.int8), st.integers(0, 2)),
)  # fmt: skip
CONTENT = st.recursive(
    LEAVES, lambda inner: st.dictionaries(NAMES | st.integers(), inner, max_size=4) | st.lists(inner, max_size=2), max_leaves=8
)  # fmt: skip


def loads_or_one_line(path: Path) -> None:
    model, before = small(), {name: value.clone() for name, value in small().state_dict().items()}
    model.load_state_dict(before)
    try:
        load_weights(model, path)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # all or nothing


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT, whole=st.booleans(), prefix=st.sampled_from(["", "module.", "model.", "a.b."]))
def test_any_content(content: Any, whole: bool, prefix: str, tmp_path: Path):
    mixed = behind(prefix, numbers()) | content if whole and isinstance(content, dict) else content
    loads_or_one_line(saved(mixed, tmp_path))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["zip", "older", "safetensors"]))
def test_files_with_bytes_changed_or_cut(data: st.DataObject, kind: str, tmp_path: Path):
    path = tmp_path / "w.pt"
    if kind == "safetensors":
        safetensors.torch.save_file(numbers(), path)
    else:
        torch.save(
            {"state_dict": numbers(), "args": argparse.Namespace(a=1)},
            path,
            _use_new_zipfile_serialization=kind == "zip",
        )
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, min(len(raw), 3000) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    loads_or_one_line(path)


def test_a_model_without_tensors(tmp_path: Path):
    assert "it has no tensors to load" in refused(saved(numbers(), tmp_path), nn.Flatten())


def test_names_that_mean_something_else_elsewhere(tmp_path: Path):
    """A network whose own parts are called as wrappers call theirs, beside a part of the same name without."""
    odd = nn.ModuleDict({"module": nn.Linear(2, 2), "net": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    given = {name: torch.rand_like(value) for name, value in odd.state_dict().items()}
    odd, line = took(saved(given, tmp_path), odd)
    assert same(odd, given) and line == ""
    load_fitting_set(odd, {"": given}, "here")
