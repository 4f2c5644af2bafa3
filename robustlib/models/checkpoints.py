"""The named tensors in a file of weights, whose kind is told by its content. Nothing in it is ever executed."""

import json
import pickletools
import re
import textwrap
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from robustlib.memory import out_of_memory
from robustlib.models.file_kinds import LEGACY, MEMBER, SAVE, is_safetensors, kind_of
from robustlib.models.weights_bounds import AGAIN, check_archive, check_bytes, declared_bytes, within_bounds
from robustlib.regular_files import irregular

Weights = dict[str, Tensor]
DEPTH = 2  # of dicts within dicts that are looked through


class Placeholder:
    """Stands in for a class or function that a checkpoint names beside its tensors: it takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class PlaceholderDict:
    """The same for kinds of dict: their entries are looked through."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class PlaceholderList:
    """The same for kinds of list: the first PyTorch that read such files safely puts entries into lists alone."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


# What training scripts keep beside the weights. None of it is imported or called: each name gets a placeholder, so that
# letting it in can run nothing, and hold no tensor back. What is not here is refused.
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
NUMPY_CORES = ("core", "_core")
PLACEHOLDERS: dict[str, Any] = {
    **dict.fromkeys(("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal"), Placeholder),
    **{f"{module}.{name}": Placeholder for module in ("pathlib", "pathlib._local") for name in PATHS},
    **{f"datetime.{name}": Placeholder for name in ("datetime", "date", "time", "timedelta", "timezone")},
    **{f"numpy.{core}.multiarray.{name}": Placeholder for core in NUMPY_CORES for name in ("scalar", "_reconstruct")},
    **{f"numpy.{core}.numeric._frombuffer": Placeholder for core in NUMPY_CORES},
    **dict.fromkeys(("numpy.dtype", "numpy.ndarray", "typing.Any", "builtins.getattr"), Placeholder),
    **{f"numpy.{name}": Placeholder for name in ("float64", "float32", "int64", "int32", "bool_", "str_")},
    **{f"builtins.{name}": Placeholder for name in ("int", "float", "str", "bool", "list", "dict", "tuple", "object")},
    **{f"omegaconf.base.{name}": Placeholder for name in ("ContainerMetadata", "Metadata")},
    **{f"omegaconf.nodes.{kind}Node": Placeholder for kind in ("Any", "String", "Integer", "Float", "Boolean", "Path")},
    **dict.fromkeys(("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"), Placeholder),
    "mmengine.logging.history_buffer.HistoryBuffer": Placeholder,
    **{f"{place}.callbacks.model_checkpoint.ModelCheckpoint": Placeholder for place in LIGHTNING},
    **{f"{top}.utilities.{file}.AttributeDict": PlaceholderDict for top in LIGHTNING for file in ("parsing", "data")},
    **dict.fromkeys(("collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode"), PlaceholderDict),
    **dict.fromkeys(("addict.addict.Dict", "addict.Dict", "mmengine.config.config.ConfigDict"), PlaceholderDict),
    "collections.deque": PlaceholderList,
}  # fmt: skip


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


def read_pickle(path: Path, head: bytes) -> Any:
    """What torch.save wrote, as far as it is tensors and plain data."""
    check_unpacked(path, head)
    allowed: list[Any] = [(placeholder, name) for name, placeholder in PLACEHOLDERS.items()]
    try:
        # It warns of pickle protocols: what it cannot read it raises.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals(allowed),
            path.open("rb") as file,
        ):
            return torch.load(file, map_location="cpu", weights_only=True)  # a path it would judge by its ending
    except OSError:
        raise
    except Exception as error:
        if out_of_memory(error):
            if not fits_in_memory(path.stat().st_size):
                raise
            raise ValueError(
                f"{path} asks for more memory than there is, though it has {path.stat().st_size} bytes: download or "
                "copy it again"
            ) from error
        # A broken one raises whatever torch stumbles over: KeyError, IndexError, struct.error, ...
        raise ValueError(f"{path} {refusal(path, head, error)}") from error


BROKEN = (ValueError, LookupError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)


def check_unpacked(path: Path, head: bytes) -> None:
    """Raises ValueError for a pickle, or an archive with one, that stands for much more than it holds."""
    if head.startswith(b"PK"):
        check_archive(path)
    if not head.startswith((LEGACY, b"PK")):
        return
    try:
        asked = declared_bytes(path, MEMBER, lambda: pickle_operations(path))
    except BROKEN:  # torch says what is wrong
        return
    if asked is not None:
        raise ValueError(f"{path} asks for {asked} bytes that it does not hold: {AGAIN}")


def fits_in_memory(size: int) -> bool:
    """Whether memory holds so many bytes: where it does, it is a file of that size that asks for more."""
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True


def refusal(path: Path, head: bytes, error: Exception) -> str:
    """Why torch.load would not have it, and the way out."""
    named = re.search(r"GLOBAL ([^\s']+)", str(error))
    if "DTensor" in str(error):
        return f"holds the shards of a distributed model: gather them into one state dict there, then {SAVE}"
    ours = head.startswith((LEGACY, b"PK"))
    if ours and "Unsupported operand" in str(error):
        return f"was saved with a pickle protocol that is not torch's own: save it again with {SAVE}"
    if named is None:
        if ours:
            return f"is cut off or broken ({shortened(error)}): download or copy it again, or save it again with {SAVE}"
        return f"is a pickle that torch.save did not write: where its code is, {SAVE}"
    module = whole_module(path)
    if module is not None:
        return (
            f"holds a whole pickled module ({module}), which runs code when it is loaded: where its code is, "
            f"load it with torch.load(FILE, weights_only=False) and save its weights alone with {SAVE}"
        )
    return (
        f"holds {named[1]} beside its tensors, which may run code when it is loaded: where its code is, "
        f"load it with torch.load(FILE, weights_only=False) and save the weights alone with {SAVE}"
    )


def whole_module(path: Path) -> str | None:
    """The class of a module that was pickled whole, by the names in the pickle, which are read and not imported."""
    names: list[str] = []
    try:
        first = None
        for operation, argument, _ in pickle_operations(path):
            if operation.name == "GLOBAL":
                names.append(".".join(str(argument).split(" ")))
            first = first or (operation.name if operation.name not in ("PROTO", "FRAME") else None)
    except (ValueError, OSError, KeyError, LookupError, zipfile.BadZipFile):
        return None
    known = ("collections.", "torch._utils.", "torch.serialization.", "numpy.", "builtins.")
    layers = [name for name in names if name.startswith(("torch.nn.modules.", "torch.nn.parallel.", "torch.fx."))]
    at_top = first == "GLOBAL" and names[0] not in PLACEHOLDERS and not names[0].startswith(known)
    if not layers and not (at_top and any(name.startswith("torch._utils._rebuild") for name in names)):
        return None
    return next((name for name in names if name not in PLACEHOLDERS and not name.startswith(known)), None)


def pickle_operations(path: Path) -> Iterator[Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            place = next(name for name in archive.namelist() if name.endswith(MEMBER))
            yield from pickletools.genops(archive.read(place))
        return
    with path.open("rb") as file:
        for _ in range(3):  # the magic number, the protocol and the machine
            list(pickletools.genops(file))
        yield from pickletools.genops(file)


def shortened(error: Exception) -> str:
    """The first line of an error, of which no word is cut."""
    text = str(error)
    own = re.search(r"WeightsUnpickler error: (.*)", text)  # within much about versions of torch
    lines = (own[1] if own else text).splitlines()
    return textwrap.shorten(lines[0], 120, placeholder=" ...") if lines else type(error).__name__
