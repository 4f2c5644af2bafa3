"""The named tensors in a file of weights, whose kind is told by its content. Nothing in it is ever executed."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from robustlib.memory import out_of_memory
from robustlib.models.file_kinds import SAVE, is_safetensors, kind_of
from robustlib.models.pickled_weights import Placeholder, read_pickle, shortened
from robustlib.models.weights_bounds import check_bytes, within_bounds
from robustlib.regular_files import irregular

Weights = dict[str, Tensor]
DEPTH = 2  # of dicts within dicts that are looked through


def read_weights(path: Path) -> dict[str, Weights]:
    """The sets of named tensors in a file, on the CPU, by where they lie: "" at the top, "state_dict", "ema.module".

    Safetensors, and what torch.save wrote. Raises FileNotFoundError, or ValueError that says what the file is instead,
    and the way out.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"))
        there = f"one of those in it: {', '.join(inside[:5])}" if inside else "the file itself"
        raise ValueError(f"{path} is a folder: expected {there}")
    if (other := irregular(path)) is not None:
        raise ValueError(f"expected a file of weights, got {path}, which is {other}")
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    with path.open("rb") as file:
        head = file.read(1024)
    if is_safetensors(head):
        state: Any = read_safetensors(path, head)
    elif (kind := kind_of(path, head)) is not None:
        raise ValueError(f"{path} is {kind}")
    else:
        state = read_pickle(path, head)
    found = dict(within_bounds(path, tensor_sets(state)))
    if head.startswith(b"PK"):
        check_storages(path, (value for tensors in found.values() for value in tensors.values()))
    check_spread(path, found)
    if not found:
        raise ValueError(f"{path} holds {describe_content(state)}, and no tensors by name: save them with {SAVE}")
    return found


def check_spread(path: Path, sets: dict[str, Weights]) -> None:
    """Raises ValueError for tensors that are much larger than what the file holds of them, as an expanded one is.

    What stands there under several names, as where a block is used again and again, is one tensor.
    """
    tensors = (value for found in sets.values() for value in found.values())
    plain = (value for value in tensors if value.layout == torch.strided and not value.is_meta)
    sizes = {(v.data_ptr(), v.shape, v.stride(), v.dtype): v.numel() * v.element_size() for v in plain}
    check_bytes(path, sum(sizes.values()), "holds tensors of")


def check_storages(path: Path, tensors: Iterable[Tensor]) -> None:
    """Raises ValueError for an archive that declares more numbers than it holds: PyTorch 2.6 gives whatever else lies
    in memory there.
    """
    plain = (value.untyped_storage() for value in tensors if value.layout == torch.strided and not value.is_meta)
    sizes = Counter({storage.data_ptr(): storage.nbytes() for storage in plain}.values())
    with zipfile.ZipFile(path) as archive:
        held = Counter(member.file_size for member in archive.infolist())
    if missing := [size for size in (sizes - held) if size]:
        raise ValueError(
            f"{path} is cut off or broken: a tensor of it takes {max(missing)} bytes, and nothing in it has as many: "
            "download or copy it again"
        )


def tensor_sets(state: Any, at: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Weights]]:
    """Every dict of tensors in nested dicts, with its place. What stands beside the tensors is left out."""
    # By the types' own methods: a file may give its dicts and tensors attributes of the methods' names.
    entries = (
        enumerate(state) if isinstance(state, list | tuple) else dict.items(state) if isinstance(state, dict) else ()
    )
    named = [(str(name), value) for name, value in entries if is_name(name)]
    if isinstance(state, dict):
        tensors = {name: Tensor.detach(value) for name, value in named if is_tensor(value)}
        if tensors:
            yield at, tensors
    if depth:
        for name, value in named:
            yield from tensor_sets(value, f"{at}.{name}" if at else name, depth - 1)


def is_name(name: Any) -> bool:
    return isinstance(name, str) or (isinstance(name, int) and abs(name) < 2**63)


def is_tensor(value: Any) -> bool:
    """Whether it has a shape, which one of tensors within a tensor has not."""
    return isinstance(value, Tensor) and not value.is_nested


def describe_content(state: Any) -> str:
    """What was found instead of a state dict."""
    if isinstance(state, dict):
        names = ", ".join(repr(name) for name in list(state)[:5])
        return f"a dict with the entries {names}{' and others' if len(state) > 5 else ''}" if state else "an empty dict"
    if isinstance(state, Tensor):
        return f"one tensor of shape {tuple(state.shape)}"
    return (
        "something else"
        if isinstance(state, Placeholder)
        else f"a {'list' if isinstance(state, list) else type(state).__name__}"
    )


def read_safetensors(path: Path, head: bytes) -> Weights:
    try:
        return safetensors.torch.load_file(path)
    except OSError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        expected, size = safetensors_size(path, int.from_bytes(head[:8], "little")), path.stat().st_size
        if expected is not None and size < expected:
            raise ValueError(
                f"{path} is a safetensors file that is cut off: {size} bytes of {expected}; download or copy it again"
            ) from error
        raise ValueError(
            f"{path} is a broken safetensors file ({shortened(error)}): download or copy it again"
        ) from error


def safetensors_size(path: Path, header: int) -> int | None:
    """How many bytes the file must have, by its own header; None where that says nothing."""
    with path.open("rb") as file:
        text = file.read(8 + header)[8:]
    if len(text) < header:
        return 8 + header
    try:
        about = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in about.items() if name != "__metadata__"]
        return 8 + header + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
