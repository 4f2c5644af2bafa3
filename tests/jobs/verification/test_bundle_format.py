"""Archives that are no bundle, or a hostile one: refused in a line, before anything of them is unpacked."""

import stat
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustq.cli import main
from robustq.jobs.verification.bundle_format import Bundle, Refused


def hostile(
    target: Path, name: str, content: bytes = b"x", *, mode: int = stat.S_IFREG | 0o644, twice: bool = False
) -> Path:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system, info.compress_type = mode << 16, 3, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr(info, content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(info, content)
    return target


@pytest.mark.parametrize(
    "name, how, told",
    [
        ("../evil.py", {}, "leads out of its folder"),
        ("/etc/cron.d/evil", {}, "leads out of its folder"),
        ("code/../../evil.py", {}, "leads out of its folder"),
        ("code\\..\\evil.py", {}, "leads out of its folder"),
        ("C:/evil.py", {}, "leads out of its folder"),
        ("evil.sh", {}, "belongs to no bundle"),
        ("study.json", {"mode": stat.S_IFLNK | 0o777}, "is a link or no file"),
        ("study.json", {"mode": stat.S_IFIFO | 0o644}, "is a link or no file"),
        ("study.json", {"twice": True}, "it has two members 'study.json'"),
    ],
)
def test_a_hostile_archive_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, name, how, told):
    path = hostile(tmp_path / "h.zip", name, **how)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["check", str(path)])
    assert (done.exit_code, done.stdout) == (2, "") and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert [found.name for found in tmp_path.rglob("*")] == ["h.zip"]


def test_more_than_is_allowed_is_refused_unread(tmp_path):
    path = hostile(tmp_path / "bomb.zip", "jobs.jsonl", b"0" * (3 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(Refused, match="unpacks to 3 MB, expected at most 2: --most-mb allows more"):
        Bundle(path, most_bytes=2 << 20)


def test_what_is_no_bundle_is_told_in_a_line(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("study.json", "{}")
    with zipfile.ZipFile(tmp_path / "newer.zip", "w") as archive:
        archive.writestr("manifest.json", '{"format": 2}')
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.writestr("manifest.json", "[" * 100_000)
    for name, told in {
        "text": "is no bundle: File is not a zip file",
        "absent": "No such file",
        "none.zip": "it has no manifest.json",
        "newer.zip": "it has format 2, this robustq reads 1: update robustq",
        "deep.zip": "its manifest.json cannot be read",
    }.items():
        with pytest.raises(Refused, match=told):
            Bundle(tmp_path / name)
