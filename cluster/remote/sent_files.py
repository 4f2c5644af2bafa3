"""The files of a folder that are sent to a cluster: those that git knows, none by a link out of it, and no secrets."""

import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from robustq.jobs.errors import SpecError

LEFT_OUT = ("__pycache__", ".*", "*.db", "*.db-wal", "*.db-shm", "node_modules", "venv", "*.egg-info")
# Ray would leave out what these name, also where the study needs it.
RAYS = (".gitignore", ".rayignore")
SECRETS = (
    ".env", "*.env", ".env.*", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.ppk", "*.kdbx",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "credentials*", "client_secret*", "service_account*.json",
    "secrets", "secrets.*", ".netrc", "_netrc", ".aws", ".azure", ".gcloud", ".kube", ".docker", ".ssh", ".gnupg",
    ".npmrc", ".pypirc", ".pgpass", ".my.cnf", ".htpasswd", ".git-credentials", ".streamlit",
    # Not tokenizer.json, special_tokens_map.json or token.py, which are parts of models.
    ".token", "*.token", "token", "*[._-]token", "token.txt", "token.json", "*[._-]token.txt", "*[._-]token.json",
)  # fmt: skip
EXAMPLES = (".example", ".sample", ".template", ".dist")  # .env.example is there to be read
MOST_NAMED = 5


@dataclass
class SentFiles:
    """The files that are sent, by their places below the folder; and what is left out, with the reason."""

    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def choose_files(root: Path, named: Iterable[Path] = (), requested: Iterable[str] = ()) -> SentFiles:
    """The files to send of a folder.

    named: files in it that the study needs, which are sent whatever they are called.  requested: files and folders
    that the user names, relative to the folder, which are sent too.
    Raises SpecError for names that look like secrets and were not requested, and for what is requested and not there.
    """
    root, found = root.resolve(), SentFiles()
    chosen = (path for name in requested for path in files_below(root, name))
    wanted = [os.path.relpath(path, root) for path in (*named, *chosen)]
    links = [name for name in dict.fromkeys([*wanted, *entries_of(root)]) if note_entry(root, name, found)]
    for name in links:
        follow_link(root, name, found)
    real = {name: os.path.relpath(path, root) for name, path in found.files.items()}
    for entry in os.scandir(root):
        if hidden(entry.name) and looks_secret(entry.name) and entry.name not in found.files:
            found.left_out[entry.name] = "looks like a secret"
    unrequested = {name for name in real if not {name, real[name]} & set(wanted)}
    refuse_secrets(name for name in unrequested if looks_secret(name, real[name]))
    return found


def note_entry(root: Path, name: str, found: SentFiles) -> bool:
    """Note one entry of the folder: a file to send, or why it is left out. True for a link, to be looked at later."""
    path = root / name
    try:
        mode = path.lstat().st_mode
    except OSError:  # git knows it and it was deleted
        return False
    if stat.S_ISREG(mode) and path.name not in RAYS:
        if os.access(path, os.R_OK):
            found.files[name] = path
        else:
            found.left_out[name] = "cannot be read"
    elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode):
        found.left_out[name] = "is no file but a pipe, socket or device"
    return stat.S_ISLNK(mode)


def follow_link(root: Path, name: str, found: SentFiles) -> None:
    """Send what a link leads to under the link's name, where that is sent itself."""
    try:
        target = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):  # the latter, for a loop, before Python 3.13
        found.left_out[name] = "is a link that leads nowhere"
        return
    if not target.is_relative_to(root):
        found.left_out[name] = f"is a link out of the folder, to {target}"
        return
    place = os.path.relpath(target, root)
    if place in found.files:
        found.files[name] = found.files[place]
    elif target.is_dir() and not (root / name).is_relative_to(target):
        inside = [other for other, path in found.files.items() if path.is_relative_to(target) and path == root / other]
        found.files |= {f"{name}/{os.path.relpath(root / other, target)}": root / other for other in inside}
    else:
        why = "that holds it" if target.is_dir() else "that is not sent"
        found.left_out[name] = f"is a link to {place}, {why}"


def files_below(root: Path, name: str) -> list[Path]:
    """The files of what the user asks for: a file, or a folder with all that is in it."""
    path = Path(os.path.normpath(root / name))
    if not path.exists() or not path.resolve().is_relative_to(root):
        raise SpecError(
            f"--send {name}: expected a file or folder in the study's folder {root}, found none of that name"
        )
    if not path.is_dir():
        return [path]
    return [Path(folder) / file for folder, _, files in os.walk(path) for file in sorted(files)]


def entries_of(root: Path) -> Iterator[str]:
    """Every entry that git knows, tracked or new and not ignored; without git all but what is known to be left out."""
    tracked, new = git_files(root, "--cached"), git_files(root, "--others", "--exclude-standard")
    if tracked is None or new is None:
        yield from walk_files(root, root)
        return
    for name in (*tracked, *(name for name in new if not hidden(name))):
        if (root / name / ".git").exists() and not (root / name.rstrip("/")).is_symlink():  # a repository within
            yield from (os.path.join(name, other) for other in entries_of(root / name))
        else:
            yield name


def git_files(root: Path, *how: str) -> list[str] | None:
    """Names that git lists below a folder; None where it lies in no work tree, or there is no git.

    Raises SpecError where git does not answer: what it ignores must not go along for that.
    """
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # A repository may name a program that is run at each question: not at ours.
    words = ["git", "-c", "core.fsmonitor=false", "ls-files", "-z", *how]
    try:
        ended = subprocess.run(words, cwd=root, env=environment, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"git does not say within a minute what it knows of {root}: put the study elsewhere") from error
    if ended.returncode:
        said = " ".join(os.fsdecode(ended.stderr).split())
        raise SpecError(f"git does not say what it knows of {root}, so that nothing is sent: {said}")
    return [os.fsdecode(name) for name in ended.stdout.split(b"\0") if name]


def walk_files(root: Path, folder: Path) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = os.path.relpath(entry.path, root)
        if hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk_files(root, Path(entry.path))
        else:
            yield name


def hidden(name: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in Path(name).parts for pattern in LEFT_OUT)


def looks_secret(*names: str | Path) -> bool:
    """Whether a file, or a folder that it lies in, has a name under which keys and passwords are kept."""
    parts = [part.lower() for name in names for part in Path(name).parts]
    return any(fnmatchcase(part, pattern) and not part.endswith(EXAMPLES) for part in parts for pattern in SECRETS)


def refuse_secrets(names: Iterable[str]) -> None:
    if found := sorted(names):
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise SpecError(
            f"the study's folder holds names that look like secrets: {', '.join(found[:MOST_NAMED])}{more}; move them "
            f"away, have git ignore them, or send them nevertheless: --send {found[0]}"
        )
