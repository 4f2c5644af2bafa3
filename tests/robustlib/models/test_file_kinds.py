"""Files of weights are told by their content, whatever their ending: what else they are is said, with the way out."""

import io
import json
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

from tests.helpers.small_weights import Wrapped, numbers, refused, same, small, took


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
