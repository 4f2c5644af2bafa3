"""The roles of a data set's folders: splits, wrappers around them, or classes."""

from robustlib.datasets.folder_tree import IMAGES, Folder, counts_text, first_names
from robustlib.datasets.source import SPLITS, TEST
from robustlib.datasets.split_keywords import is_keyword, split_named
from robustlib.number_text import counted

DEEPEST = 8  # wrappers within one another


def check_images(root: Folder, where: str) -> None:
    """Raises FileNotFoundError where there are none, and says what is there. where: the data set in messages."""
    if root.holds():
        return
    if not root.folders and not root.lost:
        raise FileNotFoundError(f"{where}: expected a folder for each class there, found none")
    others, lost = root.other_files(), root.count_lost()
    there = [counts_text(others)] if others else []
    there += [counted(lost, "link that leads nowhere", "links that lead nowhere")] if lost else []
    also = f" but {', '.join(there)}" if there else ""
    raise FileNotFoundError(f"{where}: expected images ({', '.join(IMAGES)}) there, found none{also}")


def split_folders(root: Folder, where: str) -> tuple[dict[str, Folder], list[Folder]]:
    """The folders with a split's classes, and those beside them that are passed over. Without splits all is test.

    Raises ValueError for what is not plain.
    """
    here = root
    for _ in range(DEEPEST):
        found, passed = named_splits(here, where)
        if found:
            return unwrapped(found), passed
        inner = wrapped(here)
        if inner is None:
            break
        here = inner
    return {TEST: here}, []


def named_splits(here: Folder, where: str) -> tuple[dict[str, Folder], list[Folder]]:
    """Folders that are named as splits are, and the other ones with images. None where the names are classes'."""
    holding = {name: folder for name, folder in sorted(here.folders.items()) if folder.holds()}
    plain, longer = candidates(holding)
    if not plain and len({split_named(name) for name in longer}) < 2 and len(longer) < len(holding):
        return {}, []
    found: dict[str, Folder] = {}
    for split in SPLITS:
        # A name that is a keyword counts before one that contains it.
        those = next(
            (some for some in ([n for n in names if split_named(n) == split] for names in (plain, longer)) if some), []
        )
        if len(those) > 1:
            raise ValueError(
                f"{where}: {first_names(those)} are each a {split} split: expected one, move the others elsewhere"
            )
        if those:
            found[split] = holding[those[0]]
    passed = [folder for folder in holding.values() if folder not in found.values()]
    if len(found) == 1 and passed:
        split, folder = next(iter(found.items()))
        raise ValueError(
            f"{where}: {folder.name!r} is the {split} split's folder by its name, but there are images in "
            f"{first_names(other.name for other in passed)} beside it: expected splits or classes. If all are classes, "
            f"move them into a folder `{TEST}`; if not, move what is no split elsewhere"
        )
    return found, passed


def candidates(holding: dict[str, Folder]) -> tuple[list[str], list[str]]:
    """Names that are a split's keyword, and those that contain one: these must be folders of folders alone.

    `seg_train` holds classes, `test_tube` may well be one.
    """
    plain = [name for name in holding if is_keyword(name)]
    longer = [name for name in holding if not is_keyword(name) and split_named(name) and holding[name].is_outer]
    return plain, longer


def wrapped(here: Folder) -> Folder | None:
    """The one folder with images within this one, where both have their images in folders alone."""
    holding = [folder for folder in here.folders.values() if folder.holds()]
    return holding[0] if here.is_outer and len(holding) == 1 and holding[0].is_outer else None


def unwrapped(splits: dict[str, Folder]) -> dict[str, Folder]:
    """The splits' folders without wrappers, as in seg_train/seg_train/CLASS. A class of another split is none."""
    for _ in range(DEEPEST):
        inner = {split: wrapped(folder) for split, folder in splits.items()}
        classes = {name for split, folder in splits.items() if inner[split] is None for name in folder.folders}
        taken = {split: folder for split, folder in inner.items() if folder is not None and folder.name not in classes}
        if not taken:
            break
        splits = splits | taken
    return splits
