"""More wrong input for the seeded generator: what is no file, stores and outputs by odd names, damaged archives."""

import io
import json
import os
import pickle
import random
import socket
import sqlite3
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

Changed = Callable[[Path, Any, random.Random], str]

# What YAML says that is no plain data, or no data at all; written as it stands.
YAML = [
    "!!int x", "!!int ''", "!!int _", "!!int '1:99'", "!!float x", "!!float ''", "!!float _", "!!bool x", "!!bool ''",
    "!!timestamp x", "!!timestamp ''", "!!timestamp '2026-13-01'", "!!binary x", "!!binary ''", "!!binary '!!'", "!!set {a}",
    "!!omap [a: 1]", "!!merge x", "!!value x", "!!str [a]", "!!map x", "!!seq x", "!x y", "=", "<<", "*nobody", "&a [*a]",
    "{<<: 3}", "{<<: {a: 1}}", "!!python/name:os.system ''", "!!python/object/apply:os.system [x]", '"\\ud800"', '"a\\0b"',
    '"\\U00110000"', "0" + "9" * 5000, "0x" + "F" * 5000, "0b" + "1" * 20000, "9" * 5000, "1" + "0" * 400, "1e" + "9" * 400,
    "[" * 80 + "]" * 80, "[" * 3000 + "]" * 3000, "[a, b", "'", "\t", "'" + "x" * 3000 + "'", "{a: 1, a: 2}", "..:b", ".a:b",
    "os.:b", "sys:exit", "'~nobody/x'", "2026-01-01T00:00:00Z", "!!null x",
]  # fmt: skip
TEXTS = [
    b"\xff", b"\xfe\xff", b"\0", b"\x01", b"\t", b"- ", b"? [a]\n: b\n", b"---\n", b"...\n", b"%YAML 9.0\n", b"name: again\n",
    b"<<: 3\n", b"=: 3\n", b"\xc2\x85x", b"\xe2\x80\xa8x", b"a: &a [*a]\n", b"{" * 2000, b"\xed\xa0\x80", b"# " + b"x" * 9_000_000,
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
]  # fmt: skip


def no_files(folder: Path) -> list[str]:
    """What stands in a folder and is no regular file, made there, and what the system has of the kind."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("not-there")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket may have 107 letters
    with socket.socket(socket.AF_UNIX) as found:
        found.bind("socket")
    os.chdir(here)
    made = ["pipe", "folder", "zero", "loop", "nowhere", "socket"]
    return [*made, "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/kmsg", "x" * 300, "a\0b", "", " ", "s.yaml/x"]


STORES = [
    "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "sqlite:///file:x?mode=memory",
    "sqlite://host/x.db", "sqlite://u:p@host/x.db", "sqlite+aiosqlite:///x.db", "sqlite+nothing:///x.db", "sqlite:x", "file:x",
    "file:///x", "mysql://u:p@h/d", "oracle://h", "foo://h", "://", "http://h/x", "s3://b/x", "sqlite:///x.db?timeout=abc",
    "postgresql://127.0.0.1:1/x", "postgresql+psycopg://127.0.0.1:1/x", "postgresql+asyncpg://h/x", "postgresql+nothing://h/x",
    "postgresql+psycopg://127.0.0.1:99999/x", "postgresql+psycopg://127.0.0.1:-5/x", "postgresql+psycopg://127.0.0.1:abc/x",
    "postgresql+psycopg://[::1:5/x", "postgresql+psycopg://127.0.0.1:1/x?bogus=1", "postgresql+psycopg://127.0.0.1:1/x?port=a",
    "postgresql+psycopg://127.0.0.1:1/x?connect_timeout=a", "postgresql+psycopg://127.0.0.1:1/x?sslmode=a",
    f"postgresql+psycopg://{'h' * 70}/x", "postgresql+psycopg://\udcff/x", "\udcff.db", "\ud800.db", "text.db", "cut.db",
    "newer.db", "foreign.db", "odd.db", "postgresql:", "s.yaml",
]  # fmt: skip
OUTPUTS = ["/proc/x", "/proc/x/y", "/sys/x", "/dev/full/x", "nowhere/x", "\udcff"]
SECONDS = ["nan", "inf", "-inf", "0", "-1", "1e30", "1e400", "x", "1_0", "", "10"]


def stores(folder: Path) -> list[str]:
    (folder / "text.db").write_text("these are no results\n" * 100)
    for name, table, value in (
        ("newer.db", "robustq_meta", 99), ("odd.db", "robustq_meta", "x"), ("foreign.db", "notes", 1), ("cut.db", "a", 2),
    ):  # fmt: skip
        with sqlite3.connect(folder / name) as db:
            db.execute(f"create table {table} (schema_version, created_at)")
            db.execute(f"insert into {table} values (?, 1)", (value,))
        db.close()
    content = (folder / "cut.db").read_bytes()
    (folder / "cut.db").write_bytes(content[: len(content) // 2 + 7])
    return STORES


def packed(path: Path, state: Any, draw: random.Random) -> str:
    """An archive whose members are compressed, some of them to much less than they stand for."""
    torch.save(state, path)
    content, how = path.read_bytes(), draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    bomb = draw.random() < 0.6
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", how) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        if bomb:
            new.writestr(f"{old.namelist()[0].partition('/')[0]}/data/99", bytes(80 * 2**20))
    return f" by {how}{', a bomb' if bomb else ''}"


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def whole(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(numel: int, size: int, stride: int, rest: bytes = b"") -> bytes:
    """A pickled tensor of one dimension over a storage of that many numbers."""
    place = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word("0") + word("cpu") + whole(numel) + rest + b"tQ"
    shape = b"(" + whole(size) + b"t(" + whole(stride) + b"t\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + whole(0) + shape + b"tR"


PICKLES = {
    "numel": tensor(10**12, 4, 1), "negative": tensor(-1, 4, 1), "expanded": tensor(4, 10**12, 0),
    "beyond": tensor(4, 10**6, 1), "negative size": tensor(4, -4, 1), "overflow": tensor(4, 2**62, 2**62),
    "bytearray": b"cbuiltins\nbytearray\n(" + whole(10**11) + b"tR", "old bytearray": b"c__builtin__\nbytearray\n(" + whole(10**11) + b"tR",
    "unicode": b"X" + struct.pack("<I", 2**32 - 1), "bytes": b"\x8e" + struct.pack("<Q", 10**12), "no arguments": b")R",
    "memory": b"h\xff", "popped": b"0", "deep": b"]" * 5000 + b"a" * 4999, "nothing": b"NQ",
}  # fmt: skip


def odd_pickle(path: Path, state: Any, draw: random.Random) -> str:
    """A pickle that asks for more than there is, in an archive or as torch.save wrote it once."""
    name = draw.choice(list(PICKLES))
    if draw.random() < 0.7:
        data = b"\x80\x02}(" + word(next(iter(state))) + PICKLES[name] + b"u."
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in (
                ("data.pkl", data),
                ("byteorder", b"little"),
                ("version", b"3\n"),
                ("data/0", bytes(16)),
            ):
                archive.writestr(f"archive/{member}", content)
        return f" {name}"
    numel = draw.choice([4, 5, 0, -1, 10**9, 10**13])
    data = b"\x80\x02}(" + word(next(iter(state))) + tensor(numel, 4, 1, rest=b"N") + b"u."
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + data + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16))
    return f" of old, {numel}"


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS: list[Any] = [
    {"__metadata__": [1]}, {"__metadata__": {"a": 1}}, {"__metadata__": {"a": "b"}}, {"__metadata__": None}, {"a": 3}, {"a": None},
    {"a": ENTRY | {"shape": [10**18]}}, {"a": ENTRY | {"shape": [-4]}}, {"a": ENTRY | {"shape": "x"}}, {"a": ENTRY | {"dtype": 3}},
    {"a": ENTRY | {"dtype": "X9"}}, {"a": ENTRY | {"data_offsets": ["0", 16]}}, {"a": ENTRY | {"data_offsets": [0, 10**15]}},
    {"a": ENTRY | {"data_offsets": [16, 0]}}, {"a": ENTRY, "b": ENTRY}, {"x" * 2000: ENTRY}, {".".join("a" * 5000): ENTRY}, [], 3,
]  # fmt: skip


def odd_safetensors(path: Path, state: Any, draw: random.Random) -> str:
    header = draw.choice(HEADERS)
    text = draw.choice(
        [json.dumps(header).encode()] * 6 + [b"{garbage", b"{\xff}", b'{"a": NaN}', b'{"a":' + b"[" * 9000]
    )
    claimed = draw.choice([len(text)] * 4 + [90_000_000, len(text) - 1])
    path.write_bytes(struct.pack("<Q", claimed) + text + bytes(draw.choice([16, 3, 40])))
    return f" {str(header)[:60]}"


def odd_names(path: Path, state: Any, draw: random.Random) -> str:
    """Names and tensors that no model has."""
    with warnings.catch_warnings(action="ignore"):  # of a prototype
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.strided)
    more: Any = draw.choice([
        {"x" * 20_000: torch.zeros(2)}, {".".join("a" * 30_000): torch.zeros(2)}, {"nested": nested}, {"\x1b[31m": torch.zeros(2)}, {2**70: torch.zeros(2)},
        {"wide": torch.zeros(1).expand(10**9)}, {"meta": torch.zeros(2, device="meta")}, {"": torch.zeros(2)},
    ])  # fmt: skip
    torch.save(state | more, path)
    return f" {str(list(more))[:40]}"


MORE_CHECKPOINTS: dict[str, Changed] = {
    "packed": packed,
    "odd pickle": odd_pickle,
    "odd safetensors": odd_safetensors,
    "odd names": odd_names,
}

ABOUT = [
    b"[]", b"3", b"null", b"\xff", b"{garbage", b"[" * 9000, b'{"info": []}', b'{"info": {"features": 3}}', b'{"info": null}',
    b'{"info": {"features": {"label": []}}}', b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [["a"]]}}}}', b'{"info": {"features": [3, {"name": 3}]}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "num_classes": 1e400}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"x": "a", "1": "b"}}}}}',
    b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"0": "a", "00": "b"}}}}}',
    b'{"info": {"features": {"label": {"_type": ["ClassLabel"], "dtype": {"class_label": 3}}}}}',
]  # fmt: skip


def with_metadata(table: pa.Table, draw: random.Random) -> pa.Table:
    key = draw.choice([b"huggingface"] * 4 + [b"pandas", b"ARROW:schema", b"ARROW:extension:name", b"\xff"])
    return table.replace_schema_metadata({key: draw.choice(ABOUT)})


def flip(path: Path, draw: random.Random) -> str:
    """Some bytes changed: in a page, in the footer or in its length."""
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little")
    first, last = draw.choice(
        [(4, len(content) - footer - 8), (len(content) - footer - 8, len(content) - 8), (0, len(content))]
    )
    for _ in range(draw.choice([1, 1, 3, 30])):
        content[draw.randrange(first, max(last, first + 1))] = draw.randrange(256)
    path.write_bytes(content)
    return f"flip within {first} to {last}"


def large_texts(path: Path) -> None:
    """Two labels of megabytes for very many rows, in few bytes."""
    labels = pa.DictionaryArray.from_arrays(
        pa.array([i % 2 for i in range(2000)], pa.int32()), ["a" * 2**20, "b" * 2**20]
    )
    pq.write_table(pa.table({"image": [b"x"] * 2000, "label": labels}), path, compression="zstd")


def many_rows(path: Path) -> None:
    """Very many rows of one byte, in few bytes."""
    pq.write_table(pa.table({"image": pa.array([b"x"]).take([0] * 10), "label": [0] * 10}), path)
    with pq.ParquetWriter(
        path, pa.schema([("image", pa.binary()), ("label", pa.int64())]), compression="zstd"
    ) as writer:
        rows = pa.table({"image": pa.array([b"x"]).take(pa.array([0] * 2**20)), "label": pa.array([0] * 2**20)})
        for _ in range(6):
            writer.write_table(rows)
