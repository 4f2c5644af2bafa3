"""Imports of a user's file from beside it: its own modules, whatever else has their names in this process.

A folder may have a `cluster.py`, `utils.py` or `random.py` of its own. Its code gets those, as a script would; nobody
else does: not robustq, not an installed package, not the code of another folder. So the folder is not put in front of
`sys.path`: its modules have names of their own in `sys.modules`, such as `user1_cluster`, and run with an `__import__`
that knows them by those.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import re
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, ClassVar

from robustlib.hashing import OURS, is_ours

NUMBERS = itertools.count(1)
LOCK = threading.Lock()  # sys.modules is everybody's; nothing is imported while it is held


class Loader(SourceFileLoader):
    """Loads a source file of the user's, whose import statements look beside it first."""

    def __init__(self, name: str, path: str, folder: "UserFolder"):
        super().__init__(name, path)
        self.folder = folder

    def get_code(self, fullname: str) -> CodeType:
        # Not from __pycache__: it knows a source by its size and the second of its last edit, which an edit may keep.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        # Functions keep the builtins that their module had when they were made: this holds for what they import later.
        module.__dict__["__builtins__"] = self.folder.builtins
        code = self.get_code(self.name)
        public = self.folder.publish(self.name, module)
        try:
            exec(code, module.__dict__)
        except BaseException:
            if public is not None:
                sys.modules.pop(public, None)
            raise


class Importlib(ModuleType):
    """importlib as the folder's modules have it: `import_module` finds theirs."""

    def __init__(self, folder: "UserFolder"):
        super().__init__("importlib")
        self.import_module = folder.import_module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib, name)


class UserFolder(importlib.abc.MetaPathFinder):
    """The modules of one user's folder, made anew for each file that is loaded, since it may have been edited.

    Of the file that was loaded last, modules whose names nobody else has stand in `sys.modules` under these too: what
    finds a module by its name, as pickle does, has the same one, in another process too.
    """

    active: ClassVar[list["UserFolder"]] = []  # whose modules are in sys.modules; the first was loaded last

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self.prefix = f"user{next(NUMBERS)}_"
        self.owned: dict[str, bool] = {}
        self.modules: dict[str, ModuleType] = {}  # while they are not in sys.modules
        self.builtins = {**vars(builtins), "__import__": self.import_}
        self.importlib = Importlib(self)
        with LOCK:
            for other in UserFolder.active:
                other.deactivate()
            UserFolder.active = [self]
            sys.meta_path.insert(0, self)
            self.before = {name.partition(".")[0] for name in sys.modules}
            self.named_by_user = self.folder in sys.path
            if not self.named_by_user:
                sys.path.append(self.folder)  # last: an installed package must not find the user's files

    def import_(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        """The import statement of the folder's modules."""
        package = ((globals or {}).get("__package__") or "") if level else ""
        internal = self.internal(importlib.util.resolve_name("." * level + name, package) if package else name)
        if internal is None:
            found = builtins.__import__(name, globals, locals, fromlist or (), level)
            return self.importlib if found is importlib else found
        module = self.load(internal)
        if not fromlist:
            return sys.modules[internal.partition(".")[0]]
        for one in getattr(module, "__all__", ()) if "*" in fromlist else fromlist:
            if hasattr(module, "__path__") and not hasattr(module, one):
                try:
                    self.load(f"{internal}.{one}")
                except ModuleNotFoundError as error:  # the statement itself says that there is no such name
                    if error.name != f"{internal}.{one}".removeprefix(self.prefix):
                        raise
        return module

    def import_module(self, name: str, package: str | None = None) -> ModuleType:
        """importlib.import_module of the folder's modules."""
        internal = self.internal(importlib.util.resolve_name(name, package) if package else name)
        return importlib.import_module(name, package) if internal is None else self.load(internal)

    def internal(self, full: str) -> str | None:
        """The name in `sys.modules` of what is the folder's own; None for what is not."""
        if full.startswith(self.prefix):
            return full
        return f"{self.prefix}{full}" if self.owns(full.partition(".")[0]) else None

    def load(self, internal: str) -> ModuleType:
        self.activate()
        try:
            module = importlib.import_module(internal)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(self.prefix):
                raise
            told = str(error).replace(self.prefix, "")
            raise ModuleNotFoundError(told, name=error.name.removeprefix(self.prefix), path=error.path) from None
        parts = internal.split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):  # folders without an __init__.py
            if name in sys.modules and sys.modules[name].__name__ == name:
                self.publish(name, sys.modules[name])
        return module

    def publish(self, internal: str, module: ModuleType) -> str | None:
        """Let a module be known by its plain name, where that is free; returns the name."""
        public = internal.removeprefix(self.prefix)
        taken = public == internal or public.partition(".")[0] in OURS or UserFolder.active[0] is not self
        if taken or sys.modules.get(public, module) is not module:
            return None
        module.__name__ = public
        sys.modules[public] = module
        return public

    def owns(self, top: str) -> bool:
        """Whether a name means a module of this folder. What was loaded before stays what it is, as Python has it, but
        for robustq's own modules, whose names nobody need know.
        """
        if top not in self.owned:
            elsewhere = top in sys.modules and not is_users(sys.modules[top], top)
            self.owned[top] = (top in OURS or not elsewhere) and self.is_in_folder(top)
        return self.owned[top]

    def is_in_folder(self, top: str) -> bool:
        spec = PathFinder.find_spec(top, [self.folder]) if top else None
        if spec is None:
            return False
        if spec.origin is not None:  # what is not Python is imported by its plain name alone
            return isinstance(spec.loader, SourceFileLoader) and not is_ours(Path(spec.origin))
        # A folder without an __init__.py is a package if there is Python in it, and none of that name is installed.
        python = any(any(Path(place).rglob("*.py")) for place in spec.submodule_search_locations or ())
        places = [place for place in sys.path if place not in ("", os.getcwd(), self.folder)]  # where one works
        there = None if top in OURS else PathFinder.find_spec(top, places)
        return python and (there is None or there.origin is None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of importlib: where a module lies that has a name of this folder's."""
        if not fullname.startswith(self.prefix):
            return None
        found = PathFinder.find_spec(fullname.removeprefix(self.prefix), [self.folder] if path is None else path)
        if found is None or (found.origin is not None and not isinstance(found.loader, SourceFileLoader)):
            return found and importlib.util.spec_from_file_location(fullname, found.origin)
        package = found.submodule_search_locations is not None
        loader = None if found.origin is None else Loader(fullname, found.origin, self)
        spec = ModuleSpec(fullname, loader, origin=found.origin, is_package=package)
        spec.has_location = found.has_location
        spec.cached = found.cached
        spec.submodule_search_locations = list(found.submodule_search_locations or ()) if package else None
        return spec

    def activate(self) -> None:
        """Back into `sys.modules`, where another file was loaded meanwhile."""
        with LOCK:
            if self not in UserFolder.active:
                sys.modules.update(self.modules)
                sys.meta_path.insert(0, self)
                UserFolder.active.append(self)

    def deactivate(self) -> None:
        """Another file is loaded next: nothing of this folder stands in for what it imports, or is kept from going."""
        sys.meta_path.remove(self)
        self.modules = {name: module for name, module in sys.modules.items() if name.startswith(self.prefix)}
        mine = set(map(id, self.modules.values()))
        others = {name for name in sys.modules if name.partition(".")[0] not in {*self.before, *OURS}}
        for name in [name for name, module in sys.modules.items() if id(module) in mine]:
            del sys.modules[name]
        for top in [top for top in others if "." not in top and lies_in(sys.modules.get(top), self.folder)]:
            for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
                del sys.modules[name]
        if self.folder in sys.path and not self.named_by_user:
            sys.path.remove(self.folder)


def is_users(module: ModuleType, top: str) -> bool:
    """Whether a top-level module is one of a user's folder, known by its plain name."""
    name = getattr(getattr(module, "__spec__", None), "name", None) or ""
    return re.fullmatch(rf"user\d+_{re.escape(top)}", name) is not None


def lies_in(module: ModuleType | None, folder: str) -> bool:
    """Whether a top-level module is a file or a package of this folder."""
    file = getattr(module, "__file__", None)
    if file is None:
        return folder in {str(Path(place).parent) for place in getattr(module, "__path__", ())}
    path = Path(file)
    return str(path.parent.parent if path.name == "__init__.py" else path.parent) == folder
