"""The cache of decoded data sets, the fingerprints that name it, and torchvision's sets without a network."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import time
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from robustlib.datasets import file_stamps, load, readers, split_cache
from robustlib.datasets.decoded_images import Pixels
from robustlib.datasets.source import DataChanged, Images, Source
from robustlib.datasets.statistics import statistics

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0, 2], dtype=np.uint8)


pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test writes were written a while ago."""
    monkeypatch.setattr(file_stamps, "clock", lambda: time.time() + 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    for prefix in ("train", "t10k"):
        for part, values in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (tmp_path / "set" / f"{prefix}-{part}-ubyte").write_bytes(header + values.tobytes())
    return tmp_path / "set"


def test_the_second_time_nothing_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch, home: Path, later: None):
    first = load.load(f"idx:{folder}", "train")
    assert len(list(home.glob("datasets/*"))) == 1

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(readers, "read_idx", never)
    monkeypatch.setattr(hashlib, "file_digest", never)
    second = load.load(f"idx:{folder}", "train")
    for loaded in (first, second):
        assert isinstance(loaded.x, np.memmap)
        assert np.array_equal(loaded.x[:, 0], IMAGES) and np.array_equal(loaded.y, LABELS)
    assert (first.names, first.mean, first.std) == (second.names, second.mean, second.std)
    with pytest.raises(AssertionError, match="read again"):
        load.load(f"idx:{folder}", "test")  # the other split has a folder of its own


def test_writing_into_a_loaded_data_set_does_not_reach_the_cache(folder: Path):
    loaded = load.load(f"idx:{folder}", "train")
    torch.from_numpy(loaded.x).zero_()
    assert np.array_equal(load.load(f"idx:{folder}", "train").x[:, 0], IMAGES)


def test_a_copy_elsewhere_has_the_same_fingerprint_and_shares_the_cache(folder: Path, tmp_path: Path, home: Path):
    shutil.copytree(folder, tmp_path / "copy")
    assert load.fingerprint(f"idx:{folder}") == load.fingerprint(f"idx:{tmp_path / 'copy'}")
    for place in (folder, tmp_path / "copy"):
        load.load(f"idx:{place}", "test")
    assert len(list(home.glob("datasets/*"))) == 1


def test_one_changed_byte_changes_the_fingerprint_and_the_images(folder: Path):
    before, path = load.fingerprint(f"idx:{folder}"), folder / "t10k-images-idx3-ubyte"
    load.load(f"idx:{folder}", "test")
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(time + 10**9, time + 10**9))  # as a later edit has it, however coarse the clock of the disk
    assert load.fingerprint(f"idx:{folder}") != before
    assert load.load(f"idx:{folder}", "test").x[-1, 0, -1, -1] == IMAGES[-1, -1, -1] ^ 1
    path.write_bytes(content)
    os.utime(path, ns=(time + 2 * 10**9, time + 2 * 10**9))
    assert load.fingerprint(f"idx:{folder}") == before


def test_names_of_files_and_readers_are_part_of_the_fingerprint(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.bin").write_bytes(b"same")
    prints = {
        load.digest(Source(reader, {"": [(name, tmp_path / f"{name}.bin")]}, ("test",), lambda _: None))  # pyright: ignore
        for reader in ("parquet", "idx")
        for name in ("a", "b")
    }
    assert len(prints) == 4


@pytest.mark.parametrize("notes", [b"", b"{", b"null-ish", b"[]", b"{}", b"\xa5\xff", None])
def test_broken_notes_are_written_anew(notes: bytes | None, folder: Path, home: Path, later: None):
    expected = load.fingerprint(f"idx:{folder}")
    (place,) = home.glob("fingerprints/*.json")
    if notes is None:  # a folder in its place
        place.unlink()
        place.mkdir()
    else:
        place.write_bytes(notes)
    assert load.fingerprint(f"idx:{folder}") == expected
    assert len(json.loads(place.read_text())["facts"]) == 4


@pytest.mark.slow
def test_no_flipped_bit_of_the_notes_gives_another_fingerprint(folder: Path, home: Path, later: None):
    expected = load.fingerprint(f"idx:{folder}")
    (place,) = home.glob("fingerprints/*.json")
    whole = place.read_bytes()
    for i in range(0, len(whole), 7):
        place.write_bytes(whole[:i] + bytes([whole[i] ^ 2]) + whole[i + 1 :])
        assert load.fingerprint(f"idx:{folder}") == expected


@pytest.mark.parametrize("name", ["facts.json", "y.npy", "x.bin", "x.sums", "moments.json", ""])
def test_a_folder_or_a_file_in_the_way_is_put_aside(name: str, folder: Path, home: Path):
    before = load.load(f"idx:{folder}", "test").mean
    (cached,) = home.glob("datasets/*")
    place = cached / name
    if name:
        place.unlink()
        (place / "inside").mkdir(parents=True)
    else:
        shutil.rmtree(place)
        place.write_text("a file")
    found = load.load(f"idx:{folder}", "test")
    assert found.mean == before and np.array_equal(found.x[:, 0], IMAGES) and found.y.tolist() == LABELS.tolist()


def test_a_cache_can_be_read_by_others(folder: Path, home: Path):
    load.load(f"idx:{folder}", "test").moments  # noqa: B018
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in home.rglob("*"))


def test_home(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path):
    assert load.home() == home
    monkeypatch.delenv("ROBUSTQ_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert load.home() == tmp_path / "xdg" / "robustq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert load.home() == Path.home() / ".cache" / "robustq"


def test_a_channel_that_never_changes_is_left_unscaled(home: Path):
    x = np.stack([np.full((3, 2, 2), 51, np.uint8), np.arange(12, dtype=np.uint8).reshape(3, 2, 2)], 1)
    split_cache.store(home / "x", Images(x, np.zeros(3, np.uint8), ["a"]))
    mean, std = statistics(Pixels(home / "x", x.shape, lambda _: iter(()), lambda _: None))
    assert mean == pytest.approx([0.2, 5.5 / 255]) and std == pytest.approx([1.0, np.arange(12).std() / 255])


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from torchvision import datasets

    def fail(**_):
        raise URLError("no network")

    monkeypatch.setattr(datasets, "MNIST", fail)
    monkeypatch.setenv("ROBUSTQ_DATA", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError) as error:
        load.load("mnist", "test")
    assert str(error.value) == (
        "dataset MNIST could not be downloaded (<urlopen error no network>): put torchvision's files of MNIST into "
        f"{tmp_path / 'mine' / 'mnist'}, or use one that works offline: digits, parquet:PATH, idx:PATH, folder:PATH, tar:PATH"
    )


class Fake:
    """What torchvision's data sets look like from outside: files under root, arrays as attributes."""

    downloads = 0

    def __init__(self, *, root: str, download: bool, train: bool | None = None, split: str | None = None):
        is_train = train if split is None else split == "train"
        Fake.downloads += download
        if download:
            (Path(root) / f"raw-{is_train}").write_bytes(b"pixels")
        self.fill(12 if is_train else 8)

    def fill(self, n: int) -> None:
        raise NotImplementedError


class Grey(Fake):
    def fill(self, n: int) -> None:
        self.data = torch.arange(n * 12).reshape(n, 3, 4).to(torch.uint8)
        self.targets, self.classes = torch.arange(n) % 2, ["zero", "one"]


class ChannelsLast(Fake):
    def fill(self, n: int) -> None:
        self.data = np.arange(n * 36).reshape(n, 4, 3, 3).astype(np.uint8)
        self.targets, self.classes = [i % 2 for i in range(n)], ["cat", "dog"]


class ChannelsFirst(Fake):
    def fill(self, n: int) -> None:
        self.data, self.labels = np.arange(n * 60).reshape(n, 3, 4, 5).astype(np.uint8), np.arange(n) % 10


@pytest.mark.parametrize(
    "name, attribute, fake, expected, names",
    [
        ("mnist", "MNIST", Grey, lambda d: d.data.numpy()[:, None], ("zero", "one")),
        ("fashion-mnist", "FashionMNIST", Grey, lambda d: d.data.numpy()[:, None], ("zero", "one")),
        ("cifar10", "CIFAR10", ChannelsLast, lambda d: d.data.transpose(0, 3, 1, 2), ("cat", "dog")),
        ("cifar100", "CIFAR100", ChannelsLast, lambda d: d.data.transpose(0, 3, 1, 2), ("cat", "dog")),
        ("svhn", "SVHN", ChannelsFirst, lambda d: d.data, tuple("0123456789")),
    ],
)
def test_torchvision_sets_are_downloaded_once(name, attribute, fake, expected, names, monkeypatch, home, tmp_path):
    from torchvision import datasets

    monkeypatch.setattr(datasets, attribute, fake)
    monkeypatch.setattr(Fake, "downloads", 0)
    for split, n in (("train", 12), ("test", 8), ("test", 8)):
        found = load.load(name, split)
        twin = fake(root=str(tmp_path), download=False, train=split == "train")
        assert len(found.x) == n and np.array_equal(found.x, expected(twin)) and found.names == names
        assert found.y.tolist() == [i % (10 if name == "svhn" else 2) for i in range(n)]
    assert Fake.downloads == 2 and (home / "data" / attribute.lower() / ".complete").exists()


class Raw(Grey):
    """Its files hold what is read."""

    def fill(self, n: int) -> None:
        self.data = torch.from_numpy(np.fromfile(self.path, np.uint8).reshape(-1, 2, 2))
        self.targets, self.classes = torch.arange(len(self.data)) % 2, ["zero", "one"]

    def __init__(self, *, root: str, download: bool, train: bool):
        self.path = Path(root) / "MNIST" / f"raw-{train}"
        if download and not self.path.exists():  # it is not looked into
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(bytes(range(4)) * (4 + train))
        self.fill(0)


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "MNIST", Raw)
    return home / "data" / "mnist"


@pytest.mark.parametrize("how", ["flipped", "cut off", "gone"])
@pytest.mark.parametrize("file", ["raw-True", "raw-False"])
def test_a_download_that_was_damaged_since_is_no_other_data_set(how: str, file: str, mnist: Path):
    before = load.fingerprint("mnist")
    path = mnist / "MNIST" / file
    content = path.read_bytes()
    path.write_bytes(content[:4] if how == "cut off" else bytes([content[0] ^ 1]) + content[1:])
    if how == "gone":
        path.unlink()
    state = "is missing" if how == "gone" else "is damaged, its content has another hash than once"
    for _ in range(2):
        with pytest.raises(DataChanged) as error:
            load.fingerprint("mnist")
        assert str(error.value) == (
            f"dataset MNIST: {path} {state}: remove {mnist} and it is downloaded again, or only {mnist / '.complete'} if "
            "you have changed the data yourself"
        )
    shutil.rmtree(mnist)
    assert load.fingerprint("mnist") == before


@pytest.mark.parametrize("noted", [b"", b"{", None])
def test_downloads_of_older_releases_are_known_from_their_first_look_on(noted: bytes | None, mnist: Path):
    before = load.fingerprint("mnist")
    (mnist / ".complete").unlink()
    if noted is not None:
        (mnist / ".complete").write_bytes(noted)
    assert load.fingerprint("mnist") == before
    assert sorted(json.loads((mnist / ".complete").read_text())["facts"]) == ["MNIST/raw-False", "MNIST/raw-True"]


def test_a_download_that_was_killed_does_not_pass_for_the_whole(mnist: Path, monkeypatch: pytest.MonkeyPatch):
    before = Raw.fill

    def killed(self, n):
        self.path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Raw, "fill", killed)
    with pytest.raises(KeyboardInterrupt):
        load.load("mnist", "test")
    monkeypatch.setattr(Raw, "fill", before)
    assert len(load.load("mnist", "test")) == 4 and not list(mnist.parent.glob(".partial-*"))


def test_a_home_that_cannot_be_written_costs_time_alone(folder: Path, home: Path, later: None):
    expected = load.fingerprint(f"idx:{folder}")
    shutil.rmtree(home / "fingerprints")
    (home / "fingerprints").write_text("in the way")
    assert load.fingerprint(f"idx:{folder}") == expected


def test_a_damaged_package_file_is_named(monkeypatch: pytest.MonkeyPatch):
    def damaged():
        raise gzip.BadGzipFile("CRC check failed")

    monkeypatch.setattr("sklearn.datasets.load_digits", damaged)
    with pytest.raises(ValueError, match=r"^dataset digits: the file of the package scikit-learn is damaged \(CRC"):
        load.load("digits", "test")
