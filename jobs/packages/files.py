"""The writing of a package: a folder or a ZIP archive, whole or not at all."""

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from robustlib import durable_files
from robustlib.packages.contents import SUFFIX
from robustq.jobs.errors import SpecError
from robustq.jobs.store.whole_files import unfinished

FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of what a ZIP archive can tell: the same files make the same archive


def check_place(out: Path) -> None:
    """Raises SpecError for a place that a package could not have once it is made, before anything is computed."""
    if out.suffix == SUFFIX and out.is_dir():
        raise SpecError(f"--out: {out} is a folder, expected a file that ends with {SUFFIX}: choose another place")
    if out.suffix != SUFFIX and out.is_file():
        raise SpecError(f"--out: {out} is a file, expected a folder, or a file that ends with {SUFFIX}")
    if out.suffix != SUFFIX and out.is_dir() and any(out.iterdir()):
        # What lies there already would be no part of the package.
        raise SpecError(
            f"--out: the folder {out} is not empty: choose another place, or a file that ends with {SUFFIX}"
        )


def write(out: Path, parts: Mapping[str, bytes]) -> None:
    """Write the files of a package into a folder, or into an archive where the name ends with .zip."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == SUFFIX:
        with unfinished(out) as part:
            with zipfile.ZipFile(part, "w") as archive:
                for name, data in sorted(parts.items()):
                    member = zipfile.ZipInfo(name, FIRST_DAY)
                    member.external_attr = 0o644 << 16
                    archive.writestr(member, data)
            durable_files.replace(part, out)
        return
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name, data in sorted(parts.items()):
            (temporary / name).write_bytes(data)
            durable_files.sync(temporary / name)
        temporary.chmod(0o755)
        durable_files.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
