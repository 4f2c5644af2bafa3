"""Artifacts: whole or not there, found by content, never outside their folder."""

import errno
import hashlib
import os
import pickle

import pytest

from jobs import artifacts
from jobs.errors import ArtifactError


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
    assert not artifacts.is_whole(str(tmp_path), stored.sha256)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63])
def test_only_hashes_become_file_names(tmp_path, name):
    with pytest.raises(ValueError, match="expected a SHA-256 in hexadecimal"):
        artifacts.get(str(tmp_path), name)


def test_partial_state(tmp_path):
    root = str(tmp_path)
    assert artifacts.get_partial(root, "k") is None
    artifacts.put_partial(root, "k", b"1")
    artifacts.put_partial(root, "k", b"2")
    assert artifacts.get_partial(root, "k") == b"2"
    artifacts.drop_partial(root, "k")
    artifacts.drop_partial(root, "k")
    assert artifacts.get_partial(root, "k") is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    """A file system whose last step fails, as on a full disk."""
    system, base = artifacts.open_root(str(tmp_path))

    class Full:
        def __getattr__(self, name):
            return getattr(system, name)

        def move(self, source, target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts, "open_root", lambda root: (Full(), base))
    with pytest.raises(OSError, match="No space left"):
        artifacts.put_partial(str(tmp_path), "k", b"1")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
