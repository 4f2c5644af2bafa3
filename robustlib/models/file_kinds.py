"""Kinds of files that hold no weights: told by the first bytes, or by what an archive holds. Free of torch."""

import zipfile
from pathlib import Path

LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # what torch.save wrote before version 1.6
MEMBER = "/data.pkl"  # in what it writes since
LARGEST_HEADER = 100_000_000  # of safetensors, bytes

AGAIN = "download or copy it again"
SAVE = "torch.save(model.state_dict(), 'weights.pt')"
FETCHED = "HTML: a web page was saved instead of the file; download the file itself"

# By how a file begins, in this order.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, and not the file: fetch that with `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras writes: load it where its code is, and {SAVE}"),
    (b"\x93NUMPY", "a NumPy array (.npy): expected tensors by name, as safetensors.torch.save_file writes them"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (b"GGUF", f"a GGUF file, whose weights are quantised: load the original ones where its code is, and {SAVE}"),
    (b"%PDF", "a PDF: download the file of weights itself"),
)  # fmt: skip


def is_safetensors(head: bytes) -> bool:
    """The length of a JSON header, then the header."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= LARGEST_HEADER


def kind_of(path: Path, head: bytes) -> str | None:
    """What the file is, with the way out; None for what torch.save may have written."""
    if not head:
        return f"empty: {AGAIN}"
    for beginning, kind in BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return kind_of_archive(path)
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first, and name the file of weights in it"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model: load the original one where its code is, and {SAVE}"
    # Protocol buffers: ONNX begins with its version and the name of what wrote it.
    if head[0] == 8 and len(head) > 2 and 1 <= head[1] <= 30 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42":
        return f"an ONNX model: load the original network where its code is, and {SAVE}"
    if head[0] == 0x80:
        return None
    return kind_of_text(head)


def kind_of_text(head: bytes) -> str:
    try:
        # The last character may be cut.
        text = head.decode("utf-8", "strict" if len(head) < 1024 else "ignore").strip()
        plain = text.isprintable() or all(c.isprintable() or c.isspace() for c in text)
    except UnicodeDecodeError:
        text, plain = "", False
    if not plain:
        expected = "expected safetensors or what torch.save writes"
        return f"no file of weights of a kind that is known: {expected}, got bytes that begin with {head[:8].hex(' ')}"
    if text[:200].lower().startswith(("<!doctype html", "<html", "<head", "<!--")):
        return FETCHED
    if text.startswith("<"):
        return f"XML, perhaps the answer of a server that had an error: {AGAIN}"
    if text.startswith(("{", "[")):
        if '"weight_map"' in text:
            return f"an index of shards: load the model from them where its code is, and {SAVE}"
        return "JSON, perhaps an index of shards or the answer of a server: expected the file of weights itself"
    return f"a text file, and no weights: {AGAIN}"


def kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return f"cut off: the end of its ZIP archive is missing; {AGAIN}"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        load = "torch.jit.load(FILE).state_dict()"
        return f"a TorchScript archive, which holds code: save its weights alone with torch.save({load}, 'weights.pt')"
    if any(name.endswith(MEMBER) for name in names):
        return None
    if any("exported_program" in name or name.endswith("archive_format") for name in names):
        return f"a program of torch.export: save the weights of its module with {SAVE}"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy .npz archive: expected tensors by name, as safetensors.torch.save_file writes them"
    if any(name.endswith(".h5") for name in names):
        return f"a Keras archive: load it where its code is, and {SAVE}"
    there = f"with {', '.join(repr(name) for name in names[:3])}" if names else "that is empty"
    return f"a ZIP archive {there}: unpack it first, and name the file of weights in it"
