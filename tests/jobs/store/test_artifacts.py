"""Artifacts: whole or not there, found by content, never outside their folder."""

import errno
import hashlib
import os
import pickle

import pytest

from robustq.jobs.errors import ArtifactError
from robustq.jobs.store import artifacts


def test_round_trip_by_content(tmp_path):
    root = str(tmp_path / "artifacts")
    stored = artifacts.put(root, "weights", b"abc")
    assert (stored.sha256, stored.bytes) == (hashlib.sha256(b"abc").hexdigest(), 3)
    assert artifacts.get(root, stored.sha256) == b"abc"
    assert artifacts.put(root, "weights", b"abc") == stored
    assert artifacts.get(f"file://{root}", stored.sha256) == b"abc"
    assert len([path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]) == 1


def test_damage_is_noticed(tmp_path):
    stored = artifacts.put(str(tmp_path), "weights", b"abc")
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(b"abd")
    with pytest.raises(ArtifactError, match=r"is damaged, its content has another hash.*`robustq retry`") as error:
        artifacts.get(str(tmp_path), stored.sha256)
    assert (error.value.path, error.value.reason) == (str(path), "damaged") and str(path) in str(error.value)
    copy = pickle.loads(pickle.dumps(error.value))  # it may come from a worker
    assert (copy.path, copy.reason, str(copy)) == (error.value.path, error.value.reason, str(error.value))


def test_what_is_missing_or_cannot_be_read_is_named(tmp_path):
    stored = artifacts.put(str(tmp_path), "weights", b"abc")
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing") as error:
        artifacts.get(str(tmp_path), stored.sha256)
    assert (error.value.path, error.value.reason) == (str(path), "missing")
    assert artifacts.reason_of(str(tmp_path), stored.sha256) == "missing"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63])
def test_only_hashes_become_file_names(tmp_path, name):
    with pytest.raises(ValueError, match="expected a SHA-256 in hexadecimal"):
        artifacts.get(str(tmp_path), name)


def states(root, key="k"):
    told = []
    return list(artifacts.get_partial(root, key, told.append)), told


def test_partial_state(tmp_path):
    root = str(tmp_path)
    assert states(root) == ([], [])
    for content in (b"1", b"2", b"3"):
        artifacts.put_partial(root, "k", content)
    artifacts.put_partial(root, "k2", b"4")
    (tmp_path / "partial" / "k.0123.partial").write_bytes(b"of a worker that was killed")
    assert states(root) == ([b"3", b"2"], [])  # the last, and the one before
    artifacts.drop_partial(root, "k")
    artifacts.drop_partial(root, "k")
    assert states(root) == ([], []) and states(root, "k2") == ([b"4"], [])
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["k2"]


@pytest.mark.parametrize("how", ["flipped in the seal", "flipped", "cut off", "empty", "of an older release"])
def test_a_damaged_state_is_named_and_removed(how, tmp_path):
    root = str(tmp_path)
    for content in (b"one", b"two"):
        artifacts.put_partial(root, "k", content)
    path = tmp_path / "partial" / "k"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "flipped in the seal": bytes([whole[0] ^ 1]) + whole[1:],
            "flipped": whole[:-1] + bytes([whole[-1] ^ 128]),
            "cut off": whole[: len(whole) // 2],
            "empty": b"",
            "of an older release": b"two",
        }[how]
    )
    found, told = states(root)
    assert found == [b"one"] and len(told) == 1 and str(path) in told[0] and "is damaged" in told[0]
    assert "\n" not in told[0] and not path.exists()
    assert states(root) == ([b"one"], [])


def test_a_folder_in_the_place_of_a_file_is_put_aside(tmp_path):
    root, content = str(tmp_path), b"abc"
    path = tmp_path / artifacts.blob_path("", hashlib.sha256(content).hexdigest()).lstrip("/")
    for place in (path, tmp_path / "partial" / "k"):
        (place / "inside").mkdir(parents=True)
    assert artifacts.get(root, artifacts.put(root, "weights", content).sha256) == content
    artifacts.put_partial(root, "k", content)
    assert states(root) == ([content], [])


class Elsewhere:
    """A file system that is not this machine's own, whose last step fails, as on a full disk."""

    type_name = "s3"

    def __init__(self, system):
        self.system = system

    def __getattr__(self, name):
        return getattr(self.system, name)

    def move(self, source, target):
        full()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["replace", "fsync", "move"])
def test_a_full_disk_leaves_nothing_half_written(step, tmp_path, monkeypatch):
    artifacts.put_partial(str(tmp_path), "k", b"1")
    if step == "move":
        system, base = artifacts.open_root(str(tmp_path))
        monkeypatch.setattr(artifacts, "open_root", lambda root: (Elsewhere(system), base))
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        artifacts.put_partial(str(tmp_path), "k", b"2")
    with pytest.raises(OSError, match="No space left"):
        artifacts.put(str(tmp_path), "weights", b"2")
    assert states(str(tmp_path)) == ([b"1"], [])
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a crash of the machine may leave a name with nothing behind it."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        steps.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def named(source, target):
        steps.append(("name", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    artifacts.put_partial(str(tmp_path), "k", b"1")
    (first, temporary), *rest = steps
    assert first == "sync" and temporary.startswith("k.")
    assert rest == [("name", "k"), ("sync", "partial")]
