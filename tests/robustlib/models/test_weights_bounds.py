"""What a file declares, compared with its size: bombs are refused before they are unpacked, honest files are not."""

import io
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from robustlib.datasets import parquet_files
from robustlib.datasets.parquet_files import encode, oversize_problem, read_footer, read_labels
from robustlib.datasets.tar_members import members
from robustlib.models.checkpoints import read_weights
from robustlib.models.weights_bounds import SMALL_BYTES, TIMES, check_bytes
from robustq.jobs.errors import RunError
from robustq.jobs.store.snapshot import Bounded, read_members
from tests.helpers.bounded import bounded
from tests.helpers.wrong_files import PICKLES, tensor, word

MANY = 10**11


def archive(path: Path, data: bytes, storage: int = 16, how: int = zipfile.ZIP_STORED) -> None:
    """What torch.save writes, with this pickle and one storage of zeros."""
    with zipfile.ZipFile(path, "w", how) as found:
        for name, content in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")):
            found.writestr(f"archive/{name}", content)
        with found.open("archive/data/0", "w", force_zip64=True) as file:
            for start in range(0, storage, 2**24):
                file.write(bytes(min(2**24, storage - start)))


def state_of(value: bytes) -> bytes:
    return b"\x80\x02}(" + word("a") + value + b"u."


@pytest.mark.slow
def test_a_bomb_of_zeros_is_refused_by_what_it_declares(tmp_path: Path):
    archive(tmp_path / "w.pt", state_of(tensor(2**28, 4, 1)), 2**30, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "w.pt").stat().st_size < 2**21
    with (
        bounded(),
        pytest.raises(ValueError, match=r"unpacks to 1,024 MB, though it has 1\.0 MB: expected at most 72 MB"),
    ):
        read_weights(tmp_path / "w.pt")


@pytest.mark.slow
@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_honest_file_passes_also_packed(tmp_path: Path, how: int):
    torch.manual_seed(0)
    torch.save({"a": torch.randn(1000), "b": torch.zeros(10**7)}, tmp_path / "o.pt")
    with zipfile.ZipFile(tmp_path / "o.pt") as old, zipfile.ZipFile(tmp_path / "w.pt", "w", how) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    found = read_weights(tmp_path / "w.pt")[""]
    assert torch.equal(found["a"], torch.load(tmp_path / "o.pt")["a"]) and found["b"].shape == (10**7,)


def test_the_limit_is_eight_times_the_size_and_64_mb(tmp_path: Path):
    (tmp_path / "f").write_bytes(bytes(1000))
    assert (TIMES, SMALL_BYTES) == (8, 64 * 2**20)
    check_bytes(tmp_path / "f", 8000 + 64 * 2**20, "unpacks to")
    with pytest.raises(ValueError, match="unpacks to 64 MB"):
        check_bytes(tmp_path / "f", 8001 + 64 * 2**20, "unpacks to")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (PICKLES["expanded"], "holds tensors of 3,814,697 MB"),
        (PICKLES["bytearray"], f"asks for {MANY} bytes"),
        (PICKLES["old bytearray"], f"asks for {MANY} bytes"),
        (PICKLES["numel"], "is cut off or broken"),
    ],
)
def test_few_bytes_that_stand_for_many_are_refused(tmp_path: Path, value: bytes, said: str):
    archive(tmp_path / "w.pt", state_of(value))
    with bounded(), pytest.raises(ValueError, match=said):
        read_weights(tmp_path / "w.pt")


def test_a_block_that_a_network_uses_again_and_again_counts_once(tmp_path: Path):
    block = torch.nn.Linear(1000, 1000)
    model = torch.nn.Sequential(*[block] * 40)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    declared = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert declared > TIMES * (tmp_path / "w.pt").stat().st_size + SMALL_BYTES
    assert read_weights(tmp_path / "w.pt")[""].keys() == model.state_dict().keys()


@pytest.mark.slow
def test_one_dict_that_stands_there_very_often(tmp_path: Path):
    inner = {f"a{i}": torch.zeros(1) for i in range(100)}
    torch.save({str(i): inner for i in range(20_000)}, tmp_path / "w.pt")
    with bounded(), pytest.raises(ValueError, match="holds more than 200000 tensors by name"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["x" * 10**6, ".".join("a" * 10**5)])
def test_names_are_no_books(tmp_path: Path, name: str):
    torch.save({name: torch.zeros(1)}, tmp_path / "w.pt")
    with bounded(), pytest.raises(ValueError, match=f"a tensor whose name has {len(name)} letters"):
        read_weights(tmp_path / "w.pt")


def with_header(size: int) -> bytes:
    """A tar file whose first header has a fact of so many bytes beside it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.cls")
        info.pax_headers = {"comment": "x" * size}
        tar.addfile(info)
    return file.getvalue()


def test_headers_of_tar_files_are_small(tmp_path: Path):
    (tmp_path / "few.tar").write_bytes(with_header(1000))
    assert [member.name for member in members(tmp_path / "few.tar")] == ["0.cls"]
    (tmp_path / "many.tar").write_bytes(with_header(10**6))
    with pytest.raises(ValueError, match="a header of 1000017 bytes, expected at most 65536"):
        list(members(tmp_path / "many.tar"))
    with pytest.raises((RunError, ValueError), match="a header of 1000017 bytes"):
        read_members(Bounded(io.BytesIO(with_header(10**6)), 10**8), tmp_path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_are_read_as_they_would_be_one_by_one(tmp_path: Path, kind: pa.DataType):
    texts = ["b", "", "a", None, "b", "ß", "a", "", "c"] * 50
    for dictionary in (True, False):
        column = pa.array(texts, kind)
        pq.write_table(
            pa.table({"label": column}), tmp_path / "l.parquet", use_dictionary=dictionary, row_group_size=100
        )
        found = read_labels(read_footer(tmp_path / "l.parquet"), ("label",))
        twin = encode(tmp_path, pa.chunked_array([pa.array(texts)]))
        for labels in (found, twin):
            assert [labels.values[code] if code >= 0 else None for code in labels.codes] == [
                text or None for text in texts
            ]
        assert set(found.values) == set(twin.values) and found.codes.dtype == np.int64


def test_a_text_of_megabytes_is_no_label(tmp_path: Path):
    labels = pa.DictionaryArray.from_arrays(
        pa.array([i % 2 for i in range(20_000)], pa.int32()), ["a" * 2**20, "b" * 2**20]
    )
    pq.write_table(pa.table({"label": labels}), tmp_path / "l.parquet")
    with bounded(), pytest.raises(ValueError, match="expected labels, got a text of 1048576 letters"):
        read_labels(read_footer(tmp_path / "l.parquet"), ("label",))


def test_rows_are_as_many_as_a_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(pa.table({"label": [0] * 12}), tmp_path / "l.parquet")
    assert not read_footer(tmp_path / "l.parquet").broken
    monkeypatch.setattr(parquet_files, "TIMES", 0)
    monkeypatch.setattr(parquet_files, "SMALL_ROWS", 11)
    size = (tmp_path / "l.parquet").stat().st_size
    assert read_footer(tmp_path / "l.parquet").broken.endswith(f"it declares 12 rows in {size} bytes")


@pytest.mark.parametrize(
    ("counted", "rows", "unpacked", "refused"),
    [
        (1_000_000 + 5000, 1_000_000 + 5000, 0, False), (1_000_000 + 5001, 1_000_000 + 5001, 0, True), (3, 3, 2**30 + 5000, False),
        (3, 3, 2**30 + 5001, True), (3, 4, 0, True), (-1, -1, 0, True),
    ],
)  # fmt: skip
def test_a_footer_is_believed_within_bounds(counted: int, rows: int, unpacked: int, refused: bool):
    """Of a file of 5 bytes."""
    group = SimpleNamespace(num_rows=rows, total_byte_size=unpacked)
    about = SimpleNamespace(num_rows=counted, num_row_groups=1, row_group=lambda place: group)
    assert (oversize_problem(about, 5) is not None) == refused


def test_a_tensor_of_more_numbers_than_lie_there_is_refused(tmp_path: Path):
    """As many as the file has bytes in all, so that no bound on its size tells."""
    archive(tmp_path / "w.pt", state_of(tensor(8, 8, 1)), storage=16)
    with pytest.raises(ValueError, match=r"w\.pt is cut off or broken"):
        read_weights(tmp_path / "w.pt")
    archive(tmp_path / "w.pt", state_of(tensor(4, 4, 1)), storage=16)
    assert torch.equal(read_weights(tmp_path / "w.pt")[""]["a"], torch.zeros(4))
