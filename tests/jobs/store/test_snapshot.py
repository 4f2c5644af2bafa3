"""A store that comes home from a cluster, which is not believed: what else it sends is refused and writes nothing."""

import base64
import hashlib
import io
import sqlite3
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from robustq.jobs.errors import RunError
from robustq.jobs.store.artifacts import put
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.snapshot import BEGIN, END, snapshot_text, unpack

BLOB = hashlib.sha256(b"weights").hexdigest()
PLACE = f"artifacts/blobs/{BLOB[:2]}/{BLOB}"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "there" / "results.db"
    store = open_store(str(path), create=True, write=True)
    store.engine.dispose()
    put(store.artifacts, "weights", b"weights")
    return path


def wrapped(tar: bytes) -> str:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(tar)
    body = sink.getvalue().to_pybytes()
    return f"{BEGIN} {hashlib.sha256(body).hexdigest()}-----\n{base64.b64encode(body).decode()}\n{END}"


def packed(*members: tuple[str, bytes | str], kind: bytes = tarfile.REGTYPE) -> str:
    """A snapshot of these files; a text instead of bytes is where a link leads, of that kind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return wrapped(out.getvalue())


def test_a_store_and_its_artifacts_come_home(there: Path, tmp_path: Path):
    (there.parent / "artifacts" / "blobs" / BLOB[:2] / f"{BLOB}.partial").write_text("being written")
    out = tmp_path / "here" / "mine.db"
    written = unpack(snapshot_text(str(there), artifacts=True), out)
    assert written == [out, out.parent / PLACE] and (out.parent / PLACE).read_bytes() == b"weights"
    assert unpack(snapshot_text(str(there), artifacts=False), out.with_name("b.db")) == [out.with_name("b.db")]
    open_store(str(out)).engine.dispose()


def test_a_blob_that_is_no_such_content_replaces_none(there: Path, tmp_path: Path):
    out = tmp_path / "here" / "mine.db"
    (out.parent / PLACE).parent.mkdir(parents=True)
    (out.parent / PLACE).write_bytes(b"weights")
    with pytest.raises(RunError, match=f"^the cluster sent {PLACE} with other content than its name says: nothing"):
        unpack(packed(("results.db", there.read_bytes()), (PLACE, b"others")), out)
    assert (out.parent / PLACE).read_bytes() == b"weights" and not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["artifacts"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("../evil", b"x", tarfile.REGTYPE),
        ("/tmp/evil", b"x", tarfile.REGTYPE),
        ("artifacts/blobs/../../evil", b"x", tarfile.REGTYPE),
        ("artifacts/partial/key", b"x", tarfile.REGTYPE),
        (f"artifacts/blobs/00/{BLOB}", b"weights", tarfile.REGTYPE),
        ("my_model.py", b"x", tarfile.REGTYPE),
        ("results.db", b"twice", tarfile.REGTYPE),
        (PLACE, "/etc/passwd", tarfile.SYMTYPE),
        (PLACE, "results.db", tarfile.LNKTYPE),
        (PLACE, "", tarfile.FIFOTYPE),
        (PLACE, "", tarfile.CHRTYPE),
    ],
)
def test_nothing_but_a_store_and_blobs_is_written(there: Path, tmp_path: Path, name: str, content, kind: bytes):
    out = tmp_path / "here" / "mine.db"
    with pytest.raises(RunError, match="which is neither its store nor an artifact: nothing was written"):
        unpack(packed(("results.db", there.read_bytes()), (name, content), kind=kind), out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
def test_a_small_snapshot_of_a_large_one_is_refused_by_its_size(there: Path, tmp_path: Path):
    content = bytes(200 * 2**20)
    name = f"artifacts/blobs/{(digest := hashlib.sha256(content).hexdigest())[:2]}/{digest}"
    text = packed(("results.db", there.read_bytes()), (name, content))
    assert len(text) < 2**20
    out = tmp_path / "here" / "mine.db"
    with pytest.raises(RunError, match=r"holds more than 100 MB: nothing was written; --most-mb allows more"):
        unpack(text, out, most_bytes=100 * 2**20)
    assert list(out.parent.iterdir()) == []
    assert len(unpack(text, out, most_bytes=300 * 2**20)) == 2
    with pytest.raises(RunError, match="holds more than 0 MB"):
        unpack("x" * 3000, tmp_path / "other.db", most_bytes=1000)


@pytest.mark.parametrize("content", [b"no database", b"", b"SQLite format 3\0" + bytes(100)])
def test_what_is_no_store_of_ours_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(RunError, match="nothing was written"):
        unpack(packed(("results.db", content)), tmp_path / "mine.db")
    with pytest.raises(RunError, match="sent no SQLite store: nothing was written"):
        unpack(packed((PLACE, b"weights")), tmp_path / "mine.db")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_database_is_refused(tmp_path: Path):
    with sqlite3.connect(tmp_path / "foreign.db") as db:
        db.execute("CREATE TABLE robustq_meta (a)")
    db.close()
    with pytest.raises(RunError, match=r"no store of robustq's: nothing was written"):
        unpack(packed(("results.db", (tmp_path / "foreign.db").read_bytes())), tmp_path / "mine.db")


@pytest.mark.parametrize("damage", ["=", "AAA", "é"])
def test_damaged_letters_are_one_line(there: Path, tmp_path: Path, damage: str):
    head, _, rest = snapshot_text(str(there), artifacts=False).partition("\n")
    with pytest.raises(RunError, match=r"^the snapshot came damaged: try again$"):
        unpack(f"{head}\n{damage}{rest}", tmp_path / "mine.db")


@pytest.mark.parametrize("tar", [b"", b"no tar" * 1000])
def test_what_is_no_archive_is_one_line(tmp_path: Path, tar: bytes):
    with pytest.raises(RunError, match="nothing was written"):
        unpack(wrapped(tar), tmp_path / "mine.db")
    body = b"not packed"
    text = f"{BEGIN} {hashlib.sha256(body).hexdigest()}-----\n{base64.b64encode(body).decode()}\n{END}"
    with pytest.raises(RunError, match="cannot be read"):
        unpack(text, tmp_path / "mine.db")
