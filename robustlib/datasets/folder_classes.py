"""The classes in the folders of a data set's splits, and the message about what was taken."""

import re
from collections import Counter
from collections.abc import Iterator

from robustlib.datasets.folder_tree import PICTURES, Folder, counts_text, first_names, printable
from robustlib.datasets.source import TEST
from robustlib.datasets.split_keywords import is_keyword, split_named
from robustlib.datasets.splits import MEANING, words_of
from robustlib.number_text import counted


def classes_in(folder: Folder) -> list[str]:
    """Names of its classes, in order: folders with images, and empty ones. One with other files alone is none."""
    return [name for name, inner in sorted(folder.folders.items()) if inner.holds() or not inner.other_files()]


def class_names(splits: dict[str, Folder]) -> list[str]:
    """Those of train and test together, else those of validation; sorted as torchvision does."""
    usual = [splits[split] for split in ("train", TEST) if split in splits] or list(splits.values())
    return sorted({name for folder in usual for name in classes_in(folder)})


def check_classes(splits: dict[str, Folder], where: str) -> None:
    """Raises ValueError for splits without classes, classes that hold splits, and those that share none."""
    for split, folder in splits.items():
        place = f"{where}/{folder.place}" if folder.parts else where
        check_class_folders(folder, place)
        check_names(folder, place)
        if folder.images and not any(inner.holds() for inner in folder.folders.values()):
            found = counted(len(folder.images), "image")
            raise ValueError(
                f"{place}: expected a folder for each class there, found {found} without: move those of each class "
                f"into a folder of its own, {'' if folder.parts else f'{TEST}/'}CLASS"
            )
        names = set(classes_in(splits.get("train", folder)))
        if not names & set(classes_in(folder)):
            raise ValueError(
                f"{place}: the {split} split has no class in common with the train split: it has "
                f"{first_names(classes_in(folder))}, expected {first_names(sorted(names))}"
            )


def check_class_folders(folder: Folder, place: str) -> None:
    for name, inner in sorted(folder.folders.items()):
        below = [deeper for deeper, held in sorted(inner.folders.items()) if is_keyword(deeper) and held.holds()]
        if len({split_named(deeper) for deeper in below}) > 1:
            raise ValueError(
                f"{place}/{printable(name)} holds {first_names(below)}: expected SPLIT/CLASS/IMAGE, got "
                "CLASS/SPLIT/IMAGE"
            )
        unread = unread_pictures(inner)
        if unread and not inner.holds():
            raise ValueError(f"{place}/{printable(name)} holds only {counts_text(unread)}: convert them to PNG or JPEG")


def check_names(folder: Folder, place: str) -> None:
    """Raises ValueError where what would be classes are splits, or wrappers, by all that can be seen of them."""
    names = classes_in(folder)
    if not any(split_named(part) for part in folder.parts) and (flat := alike_but_for_split(names)):
        raise ValueError(
            f"{place}: {first_names(flat)} would be classes, but are named as splits are: expected SPLIT/CLASS/IMAGE. "
            f"If they are classes, move all classes into a folder `{TEST}`"
        )
    for name in names:
        again = [inner for inner in sorted(folder.folders[name].folders) if inner in names]
        if len(again) > 1 and folder.folders[name].is_outer:
            raise ValueError(
                f"{place}/{printable(name)} holds {first_names(again)}, which are classes beside it too: expected each "
                "class once, so move that folder elsewhere"
            )
    if len(names) == 1 and folder.images and folder.folders[names[0]].is_outer:
        beside = counted(len(folder.images), "image beside it: move it", "images beside it: move these")
        raise ValueError(
            f"{place}: expected a folder for each class there, found {printable(names[0])} alone, which holds folders, "
            f"and {beside} elsewhere"
        )


def alike_but_for_split(names: list[str]) -> list[str]:
    """Names that differ by the split's word alone, such as train_images and test_images; the only one with such a word.

    `test_tube` and `training_shoe` differ by more.
    """
    rests: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        words = words_of(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))  # also trainA and testA
        if any(word in MEANING for word in words):
            rests.setdefault(tuple(word for word in words if word not in MEANING), []).append(name)
    alike = [name for those in rests.values() if len(those) > 1 for name in those]
    return alike or (names if len(names) == 1 and rests else [])


def unread_pictures(folder: Folder) -> Counter[str]:
    """How many files below are pictures by their endings, but of a kind that is not read."""
    return Counter({ending: n for ending, n in folder.other_files().items() if ending in PICTURES})


def notes_of(root: Folder, splits: dict[str, Folder], passed: list[Folder]) -> tuple[str, ...]:
    """What was taken, where a person may wonder."""
    return tuple([*split_place_notes(splits), *passed_over_notes(root, splits, passed), *class_notes(splits)])


def split_place_notes(splits: dict[str, Folder]) -> Iterator[str]:
    """Said of splits that do not lie in folders of just their names."""
    only = next(iter(splits.values())) if set(splits) == {TEST} else None
    if only is not None and not only.parts:
        return
    if only is not None and not any(split_named(part) for part in only.parts):
        yield f"the classes are taken from {only.place}/"
    elif any(folder.parts != (split,) for split, folder in splits.items()):
        yield "read as splits: " + ", ".join(f"{split} from {folder.place}/" for split, folder in splits.items())


def passed_over_notes(root: Folder, splits: dict[str, Folder], passed: list[Folder]) -> Iterator[str]:
    """Said of images, links and folders that are not taken."""
    if passed:
        yield f"passed over beside the splits: {first_names(folder.name for folder in passed)}"
    for folder in splits.values():
        if folder.images:
            place = f"{folder.place}/" if folder.parts else "the folder"
            yield f"passed over: {counted(len(folder.images), 'image')} directly in {place}, in no class's folder"
        classes = set(classes_in(folder))
        none = [inner.place for name, inner in sorted(folder.folders.items()) if name not in classes]
        if none:
            yield f"no classes, as there are no images in them: {first_names(none)}"
    unread = sum((unread_pictures(folder) for folder in splits.values()), Counter())
    if unread:
        yield f"passed over, as they are not read: {counts_text(unread)}"
    if lost := root.count_lost():
        yield f"passed over: {counted(lost, 'link that leads', 'links that lead')} nowhere, or back"


def class_notes(splits: dict[str, Folder]) -> Iterator[str]:
    """Said of classes that only some splits have images of."""
    names = class_names(splits)
    if len(names) == 1:
        yield f"there is only one class, {printable(names[0])}: whatever a model of it answers is right"
    empty = [name for name in names if not any(holds(folder, name) for folder in splits.values())]
    if empty:
        yield f"classes without an image: {first_names(empty)}"
    if "train" in splits:
        for split in (TEST, "validation"):
            new = [n for n in names if split in splits and holds(splits[split], n) and not holds(splits["train"], n)]
            if new:
                yield f"classes that are in {split} but not in train: {first_names(new)}"


def holds(folder: Folder, name: str) -> bool:
    return name in folder.folders and folder.folders[name].holds()
