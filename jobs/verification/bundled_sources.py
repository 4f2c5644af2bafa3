"""The files that a bundle's numbers rest on: weights, programs, packages, and the source of the study's own models."""

import importlib.util
import io
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from robustlib.addresses import is_address
from robustlib.hashing import code_hash, file_hash, local_modules
from robustlib.packages.contents import SUFFIX, open_contents
from robustlib.packages.manifest import open_package, package_hash
from robustq.jobs.errors import SpecError
from robustq.jobs.specs import CodeRef, ModelSpec
from robustq.jobs.verification import bundle_format
from robustq.jobs.verification.bundle_format import Content
from robustq.jobs.verification.bundled_jobs import BundledJob, files_of


def weights_files(jobs: Iterable[BundledJob]) -> dict[str, Content]:
    """The files of weights that the models name, where they lie on this machine."""
    members: dict[str, Content] = {}
    for sha256, place in sorted(set(files_of(jobs)), reverse=True):
        members[file_name(sha256, place)] = find(place, sha256)
    return {name: members[name] for name in dict.fromkeys(members)}


def file_name(sha256: str, place: str) -> str:
    """A file's name in a bundle: as its author called it, where that is a plain name."""
    name = Path(place).name
    return f"files/{sha256}/{name if re.fullmatch(bundle_format.PART, name) else 'weights'}"


def find(place: str, sha256: str, digest: Callable[[Path], str] = file_hash) -> Path:
    """Where a file lies that a job was submitted with. Raises SpecError where it is gone, or another now.

    digest: what its hash is made by.
    """
    from robustq.jobs.running.inputs import find_file

    try:
        return Path(find_file(place, sha256, str(Path.cwd()), digest))
    except (FileNotFoundError, ValueError) as error:
        raise SpecError(f"the bundle would lack what its numbers rest on: {error}") from error


def sources(jobs: Iterable[BundledJob]) -> dict[str, Content]:
    """The source of the study's own models: of a FILE.py with all that it imports from beside it; of a package also
    the code that lends it its gradient.
    """
    models = {(m.code.reference, lender(m)): (m, m.code) for one in jobs for m in one.models() if m.code is not None}
    members: dict[str, Content] = {}
    for model, code in models.values():
        if is_address(code.reference):
            continue
        members |= source(code)
        if lender(model) is not None and (lent := gradient_code(model, find(code.place, code.sha256, package_hash))):
            members |= source(lent)
    return members


def lender(model: ModelSpec) -> str | None:
    """FILE.py:factory that lends a package its gradient, as the study names it."""
    from robustq.jobs.running.package_models import GRADIENTS

    return model.options.get(GRADIENTS) if model.code is not None and model.code.is_package else None


def gradient_code(model: ModelSpec, place: Path) -> CodeRef | None:
    """The code that lends a package its gradient, by the hash that the package has of it; None where none does.

    place: of the package, here.
    """
    if (named := lender(model)) is None:
        return None
    file, _, factory = named.rpartition(":")
    return CodeRef(place=file, factory=factory, sha256=open_package(place).network["code"]["sha256"])


def source(code: CodeRef) -> dict[str, Content]:
    if not code.factory:
        return program(code)
    if not code.place.endswith(".py"):  # an installed module, whose hash is of its file alone
        from robustq.jobs.running.inputs import find_code

        try:
            find_code(code, "")
        except ValueError as error:
            raise SpecError(f"the bundle would lack what its numbers rest on: {error}") from error
        found = importlib.util.find_spec(code.place)
        if found is None or found.origin is None:
            raise SpecError(f"the bundle would lack what its numbers rest on: there is no module {code.place} here")
        return {f"code/{code.sha256}/{code.place.rpartition('.')[2]}.py": Path(found.origin)}
    main = find(code.place, code.sha256, code_hash).resolve()
    files = [main, *local_modules(main).values()]
    return {f"code/{code.sha256}/{file.relative_to(main.parent).as_posix()}": file for file in files}


def program(code: CodeRef) -> dict[str, Content]:
    """An ONNX file, or a package, as it is: a folder of one as an archive."""
    place = find(code.place, code.sha256, package_hash if code.is_package else file_hash)
    if place.is_file():
        return {program_name(code): place}
    contents, whole = open_contents(place), io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in sorted(contents.sizes):
            bundle_format.add(archive, name, contents.read(name))
    return {program_name(code): whole.getvalue()}


def program_name(code: CodeRef) -> str:
    """The name in a bundle of an ONNX file or a package, which ends as what it is."""
    ending = ".onnx" if code.is_onnx else SUFFIX
    name = Path(code.place).name.removesuffix(ending) + ending
    return f"files/{code.sha256}/{name if re.fullmatch(bundle_format.PART, name) else f'program{ending}'}"
