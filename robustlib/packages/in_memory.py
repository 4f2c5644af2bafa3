"""A package with its files in memory: it can be sent to another machine, and stays what it was when it was checked."""

from dataclasses import dataclass, replace

from robustlib.packages.contents import Contents, PackageError
from robustlib.packages.manifest import PROGRAM, Package


@dataclass(frozen=True)
class InMemory(Contents):
    """Files that were read. place: where they lay, by which messages call them."""

    data: dict[str, bytes]

    def read(self, name: str) -> bytes:
        if name not in self.data:
            raise PackageError(f"{self.place} was taken along without its file {name}")
        return self.data[name]


def in_memory(package: Package) -> Package:
    """The same package with its files in memory, all but `model.pt2`, which nothing here loads.

    It can be pickled, and what is read of it later is what was read now. Raises PackageError for a package that is not
    what its card says.
    """
    package.check_files()
    data = {name: package.read(name) for name in package.files if name != PROGRAM}
    contents = InMemory(package.contents.place, {name: len(text) for name, text in data.items()}, data)
    return replace(package, contents=contents)
