"""Wrong weights for the seeded generator: wrapped, renamed, short of something, damaged, or no weights at all."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.helpers import wrong_files
from tests.helpers.wrong_case import ATTACK, Case, network


def checkpoint(folder: Path, draw: random.Random | None) -> Case:
    """Weights as people save them, wrapped, renamed, short of something, or not weights at all."""
    path = folder / "w.pt"
    state: Any = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    what = "unchanged"
    if draw is None:
        torch.save(state, path)
    else:
        how = draw.choice(list(CHECKPOINTS))
        what = how + CHECKPOINTS[how](path, state, draw)
    return Case(folder, list(ATTACK), what)


def changed(save: Callable[[dict[str, Any], random.Random], Any]) -> Callable[[Path, Any, random.Random], str]:
    """A change of the state dict, which is then saved."""

    def change(path: Path, state: dict[str, Any], draw: random.Random) -> str:
        found, word = save(state, draw)
        torch.save(found, path)
        return f" {word}"

    return change


def renamed(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    prefix = "".join(
        draw.choice(["module.", "_orig_mod.", "model.", "backbone.", "x."]) for _ in range(draw.randint(1, 2))
    )
    return {prefix + name: tensor for name, tensor in state.items()}, prefix


def nested(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    names = draw.sample(
        ["state_dict", "model", "net", "model_state_dict", "ema", "best", "optimizer"], draw.randint(1, 3)
    )
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return {name: state if i == 0 else other for i, name in enumerate(names)} | {"epoch": 3}, "+".join(names)


def lacking(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    name = draw.choice(list(state))
    return {key: tensor for key, tensor in state.items() if key != name}, name


def with_more(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    name = draw.choice(["net.fc9.weight", "normalizer.mean", "ema.decay", "epoch"])
    return state | {name: draw.choice([torch.zeros(3), 3, "text", None])}, name


def misshapen(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    name = draw.choice(list(state))
    return state | {name: torch.zeros(*state[name].shape, 2)}, name


def retyped(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    kind = draw.choice([torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.complex64, torch.bool])
    return {name: tensor.to(kind) for name, tensor in state.items()}, str(kind)


def no_dict(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    what = draw.choice([list(state.values()), network(), {}, None, 3, torch.zeros(4), [state], {1: torch.zeros(2)}])
    return what, type(what).__name__


def cut(path: Path, state: dict[str, Any], draw: random.Random) -> str:
    torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    return f" at {path.stat().st_size}"


def flipped(path: Path, state: dict[str, Any], draw: random.Random) -> str:
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f" at {at}"


def other_file(path: Path, state: dict[str, Any], draw: random.Random) -> str:
    found = draw.choice(
        [b"", b"\0" * 100, b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
         b"PK\x03\x04" + b"\0" * 60, b"\x80\x04\x95", b"\x08\x07\x12\x07pytorch", b"\x89HDF\r\n\x1a\n", b"\x1f\x8b\x08\0\0"]
    )  # fmt: skip
    path.write_bytes(found)
    return f" {found[:12]!r}"


CHECKPOINTS: dict[str, Callable[[Path, Any, random.Random], str]] = {
    "renamed": changed(renamed),
    "nested": changed(nested),
    "lacking": changed(lacking),
    "with more": changed(with_more),
    "misshapen": changed(misshapen),
    "retyped": changed(retyped),
    "no dict": changed(no_dict),
    "cut": cut,
    "flipped": flipped,
    "another file": other_file,
    **wrong_files.MORE_CHECKPOINTS,
}
