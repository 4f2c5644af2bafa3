"""The upload to a cluster: robustq's own code, and the folder of a study with the files that it names."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import robustlib
import robustq
from robustlib.hashing import local_modules
from robustlib.number_text import counted, distinct
from robustq.cluster.remote.before_sending import check_settings
from robustq.cluster.remote.sent_files import LEFT_OUT, SentFiles, choose_files
from robustq.jobs.errors import SpecError
from robustq.jobs.study.study import Origin, load_study
from robustq.jobs.study.yaml_with_lines import Path_, read_text
from robustq.jobs.submission.expand_study import weights_place

CODE = ("__init__.py", "__main__.py", "cli.py", "cluster", "jobs")  # of robustq
LIMIT_BYTES = 100 * 2**20


@contextmanager
def staging_folder() -> Iterator[Path]:
    """A folder with the packages robustq and robustlib alone, as they are installed."""
    with tempfile.TemporaryDirectory(prefix="robustq-") as place:
        folder = Path(place)
        (folder / "robustq").mkdir()
        for name in CODE:
            copy(Path(robustq.__path__[0]) / name, folder / "robustq" / name)
        copy(Path(robustlib.__path__[0]), folder / "robustlib")
        yield folder


def copy(source: Path, target: Path) -> None:
    """A file, or a folder without what is left out of every folder that is sent."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    else:
        shutil.copy(source, target)


def upload_contents(study: Path, requested: Sequence[str] = ()) -> SentFiles:
    """The files of a study's folder that are sent with it. requested: see `choose_files`.

    Raises SpecError where they are too large to send, or a file that the study names lies outside of the folder.
    """
    read_text(study)  # which says it where that is no file
    root = study.resolve().parent
    named = [*named_files(study, root)]
    found = choose_files(root, [root / study.resolve().name, *(path for path, _ in named)], requested)
    if (size := found.size) > LIMIT_BYTES:
        held, most = distinct((size / 2**20, LIMIT_BYTES / 2**20))
        raise SpecError(
            f"the folder {root} holds {held} MB, of which {most} can be sent: put the study "
            "and the files that it names into a folder of their own; data sets are named by their path on the cluster"
        )
    for path, missing in named:
        if not path.is_file():
            raise missing
    return found


@contextmanager
def prepared_upload(study: Path, found: SentFiles | None = None) -> Iterator[tuple[Path, str]]:
    """The code and, as `study/`, what is sent of the study's folder; and a hash of the latter's content.

    found: its `upload_contents`. Raises SpecError as that does.
    """
    found = upload_contents(study) if found is None else found
    with staging_folder() as folder:
        for name, path in found.files.items():
            target = folder / "study" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        yield folder, digest(folder / "study", study.resolve().name)


def upload_listing(found: SentFiles) -> str:
    """What is sent and what is not, a line each, for people."""
    sizes = [f"{path.stat().st_size:>12,}  {name}" for name, path in sorted(found.files.items())]
    return "\n".join([*sizes, *lines_left_out(found), summary(found)])


def lines_left_out(found: SentFiles) -> list[str]:
    return [f"left out: {name} {why}" for name, why in sorted(found.left_out.items())]


def summary(found: SentFiles) -> str:
    return f"{counted(len(found.files), 'file')}, {found.size / 2**20:.1f} MB, beside robustq's own code"


def named_files(study: Path, root: Path) -> Iterator[tuple[Path, SpecError]]:
    """What the study names and what its models import from beside it, each with the error that it is missing.

    Raises SpecError for settings that the head would refuse, once all had been sent.
    """
    checked, origin = load_study(study, {})
    check_settings(checked, origin)
    for label, model in checked.models.items():
        for entry, text in (("file", (model.file or "").rpartition(":")[0]), ("weights", model.weights)):
            if not text or (entry == "file" and not text.endswith(".py")):
                continue
            place = weights_place(text, root)[0] if entry == "weights" else root / Path(text).expanduser()
            path, where = Path(os.path.normpath(place)), ("models", label, entry)
            yield from within_folder(path, root, text, origin, where)
            if entry == "file" and path.is_file():
                modules = local_modules(path)
                if modules and path.is_symlink():
                    raise origin.error(
                        where, f"{text} is a link, beside which its imports are not: name the file itself"
                    )
                for name, module in modules.items():
                    yield from within_folder(
                        root / path.parent / module.relative_to(path.parent.resolve()),
                        root,
                        f"{name}, which {text} imports,",
                        origin,
                        where,
                    )


def within_folder(path: Path, root: Path, text: str, origin: Origin, where: Path_) -> list[tuple[Path, SpecError]]:
    """The file, and what it is a link to. Raises SpecError where that lies outside of the folder."""
    real, missing = Path(os.path.realpath(path)), origin.error(where, f"{text}: there is no file {path}")
    if not real.is_relative_to(root):
        raise origin.error(where, f"{text} lies outside of the study's folder, which is what is sent")
    return [(found, missing) for found in (real, path) if found.is_relative_to(root)]


def digest(folder: Path, study: str) -> str:
    """Of the study's name and of every file's place and content."""
    found = hashlib.sha256(study.encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
