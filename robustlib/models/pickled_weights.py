"""Pickled weights, as torch.save writes them: tensors and plain data are read, and nothing else is ever executed."""

import pickletools
import re
import textwrap
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robustlib.memory import out_of_memory
from robustlib.models.file_kinds import LEGACY, MEMBER, SAVE
from robustlib.models.weights_bounds import AGAIN, check_archive, declared_bytes


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
