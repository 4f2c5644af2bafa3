"""Files and folders that a command is to write: looked at before anything runs, so that hours of work have a place."""

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from robustlib.regular_files import irregular
from robustq.jobs.errors import SpecError


class Output(click.ParamType):
    """A file to write, or a folder of files; either, where folder is None. replaced: it is written beside and then
    given its name.
    """

    name = "path"

    def __init__(self, *, folder: bool | None = False, replaced: bool = False):
        self.folder, self.replaced = folder, replaced

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        path = Path(value)
        name = param.opts[0] if isinstance(param, click.Option) else "PATH"
        problem = self.problem(path) if str(value) else "it is no name"
        if problem is not None:
            raise SpecError(f"{name}: {path} cannot be written: {problem}: choose another place")
        return path

    def problem(self, path: Path) -> str | None:
        """Why it cannot be written, in words; None where it can. Leaves nothing behind."""
        try:
            os.lstat(path)
            str(path).encode()  # which Arrow's files must be
        except ValueError as error:
            return str(error)
        except FileNotFoundError:
            pass
        except OSError as error:
            return str(error.strerror)
        kind = irregular(path)
        if self.folder:
            if kind is None and path.exists():
                return "it is a file, expected a folder"
        elif kind == "a folder" and self.folder is None:
            return unwritable(path)
        elif kind == "a folder" or (kind is not None and (self.replaced or kind == "a socket")):
            return f"it is {kind}"
        elif kind == "a pipe" and not os.path.abspath(path).startswith(("/dev/", "/proc/")):
            return "it is a pipe, for whose reader the command would wait"
        elif kind is not None:
            return None  # such as /dev/stdout, which whoever names it means
        elif path.exists() and not self.replaced:
            return None if os.access(path, os.W_OK) else "permission denied"
        return unwritable(path if self.folder else path.parent)


def unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, or in the first one above that there is; None where one can."""
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"in {there} no file can be made ({error.strerror})"
