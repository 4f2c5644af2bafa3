"""What a user's file imports from beside it: its own modules, whatever else goes by their names in this process.

A folder may have a `cluster.py`, `utils.py` or `random.py` of its own. Its code gets those, as a script would; nobody
else does: not robustq, not an installed package, not the code of another folder. So the folder is not put in front of
`sys.path`: each of its modules runs with an `__import__` of its own, which looks beside it first, at any time.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from robustlib.code import OURS, is_ours

LOCK = threading.RLock()  # sys.modules is everybody's


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a source file of the user's, whose import statements look beside it first."""

    def __init__(self, name: str, path: str, beside: "Beside"):
        super().__init__(name, path)
        self.beside = beside

    def exec_module(self, module: ModuleType) -> None:
        # Functions keep the builtins that their module had when they were made: this holds for what they import later.
        module.__dict__["__builtins__"] = self.beside.builtins
        super().exec_module(module)


class Beside(importlib.abc.MetaPathFinder):
    """The modules of one user's folder, made anew for each file that is loaded, since it may have been edited.

    Modules whose names nobody else has stand in `sys.modules` too, until another file is loaded: what finds a module by
    its name, as importlib.import_module and pickle do, has the same one.
    """

    latest: ClassVar["Beside | None"] = None
    active: ClassVar["Beside | None"] = None  # whose modules are in sys.modules, while one of them is being imported

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self.modules: dict[str, ModuleType] = {}
        self.owned: dict[str, bool] = {}
        self.stash: dict[str, dict[str, ModuleType]] = {}  # by top-level name: what others know under it
        self.builtins = {**vars(builtins), "__import__": self.import_}
        if Beside.latest is not None:
            Beside.latest.leave()
        Beside.latest = self
        self.before = {name.partition(".")[0] for name in sys.modules}
        self.named_by_user = self.folder in sys.path
        if not self.named_by_user:
            sys.path.append(self.folder)  # last: an installed package must not find the user's files

    def import_(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        """The import statement of the folder's modules."""
        package = ((globals or {}).get("__package__") or "") if level else ""
        top = (package or name).partition(".")[0]
        if not self.owns(top):
            if Beside.active is None:
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            with showing(None):
                return builtins.__import__(name, globals, locals, fromlist or (), level)
        full = importlib.util.resolve_name("." * level + name, package) if package else name
        if (found := self.known(full, fromlist or (), level)) is not None:
            return found
        with showing(self):
            self.take(top)
            return builtins.__import__(name, globals, locals, fromlist or (), level)

    def known(self, full: str, fromlist: Sequence[str], level: int) -> ModuleType | None:
        """What an import statement gives that has nothing left to load: no other thread notices it."""
        module = self.modules.get(full)
        if module is None or Beside.active is not None:
            return None
        if not fromlist:
            return self.modules[full.partition(".")[0]] if not level else None
        return module if all(name != "*" and hasattr(module, name) for name in fromlist) else None

    def owns(self, top: str) -> bool:
        """Whether a name means a module of this folder. What was loaded before stays what it is, as Python has it, but
        for robustq's own modules, whose names nobody need know.
        """
        if top not in self.owned:
            there, others = sys.modules.get(top), Beside.latest
            elsewhere = there is not None and not (others and others is not self and others.modules.get(top) is there)
            self.owned[top] = (top in OURS or not elsewhere) and self.lies_here(top)
        return self.owned[top]

    def lies_here(self, top: str) -> bool:
        spec = importlib.machinery.PathFinder.find_spec(top, [self.folder]) if top else None
        if spec is None or (spec.origin is not None and is_ours(Path(spec.origin))):
            return False
        if spec.origin is not None:
            return True
        # A folder without an __init__.py is a package if nothing else is, and if there is Python in it.
        python = any(any(Path(place).rglob("*.py")) for place in spec.submodule_search_locations or ())
        places = [place for place in sys.path if place != self.folder]
        there = None if top in OURS else importlib.machinery.PathFinder.find_spec(top, places)
        return python and (there is None or there.origin is None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of importlib, while `active`: the folder's own modules, for its own code."""
        top = fullname.partition(".")[0]
        if not (top in self.stash or self.asked()) or not self.owns(top):
            return None
        self.take(top)
        spec = importlib.machinery.PathFinder.find_spec(fullname, [self.folder] if path is None else path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path, self)
        return spec

    def asked(self) -> bool:
        """Whether the code that imports is the folder's own: it may call a package that imports something."""
        frame = sys._getframe(1)
        machinery = ("importlib", "_frozen_importlib", __name__)
        while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(machinery):
            frame = frame.f_back
        return frame is not None and frame.f_builtins is self.builtins

    def take(self, top: str) -> None:
        """Put the folder's modules of this name in the place of others'."""
        if top in self.stash:
            return
        if top in self.modules and sys.modules.get(top) is self.modules[top]:  # nobody else has the name
            self.stash[top] = {}
            return
        self.stash[top] = {name: sys.modules.pop(name) for name in named(top)}
        sys.modules.update({name: m for name, m in self.modules.items() if is_of(top, name)})

    def show(self) -> None:
        for top in [top for top, owned in self.owned.items() if owned]:
            self.take(top)
        sys.meta_path.insert(0, self)

    def hide(self) -> None:
        """Give the names back. What nobody else is called stays, of the file that was loaded last."""
        sys.meta_path.remove(self)
        for top, others in self.stash.items():
            mine = {name: sys.modules[name] for name in named(top)}
            self.modules = {name: m for name, m in self.modules.items() if not is_of(top, name)} | mine
            if others or Beside.latest is not self:
                for name in mine:
                    del sys.modules[name]
                sys.modules.update(others)
        self.stash.clear()

    def leave(self) -> None:
        """Another file is loaded next: nothing of this folder stands in for what it imports."""
        tops = {name.partition(".")[0] for name in sys.modules} - set(OURS)
        mine = [top for top in tops if top in self.modules and sys.modules.get(top) is self.modules[top]]
        mine += [top for top in tops - self.before if lies_in(sys.modules.get(top), self.folder)]
        for name in [name for top in {*mine} for name in named(top)]:
            del sys.modules[name]
        if self.folder in sys.path and not self.named_by_user:
            sys.path.remove(self.folder)


@contextmanager
def showing(which: Beside | None) -> Iterator[None]:
    """This folder's modules, or none, under their names for the length of a block."""
    with LOCK:
        before = Beside.active
        if before is not which:
            exchange(before, which)
        try:
            yield
        finally:
            if before is not which:
                exchange(which, before)


def exchange(old: Beside | None, new: Beside | None) -> None:
    if old is not None:
        old.hide()
    if new is not None:
        new.show()
    Beside.active = new


def is_of(top: str, name: str) -> bool:
    return name == top or name.startswith(f"{top}.")


def named(top: str) -> list[str]:
    return [name for name in sys.modules if is_of(top, name)]


def lies_in(module: ModuleType | None, folder: str) -> bool:
    """Whether a top-level module is a file or a package of this folder."""
    file = getattr(module, "__file__", None)
    if file is None:
        return folder in {str(Path(place).parent) for place in getattr(module, "__path__", ())}
    path = Path(file)
    return str(path.parent.parent if path.name == "__init__.py" else path.parent) == folder
