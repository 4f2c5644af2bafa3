"""The files of each split, by the words in their names, as Hugging Face's `datasets` reads them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustlib.datasets.source import SPLITS, TEST
from robustlib.number_text import counted

# https://huggingface.co/docs/datasets/repository_structure; and the two at the end of their lines.
WORDS = {
    "train": ("train", "training", "trainset"),
    TEST: ("test", "testing", "eval", "evaluation", "testset"),
    "validation": ("validation", "valid", "dev", "val"),
}
MEANING = {word: split for split, words in WORDS.items() for word in words}
USUAL = ((), ("data",))  # where a set's files lie where a person need not be told


@dataclass(frozen=True)
class Found:
    """Files by split, and what a person may wonder about."""

    files: dict[str, list[Path]]
    notes: tuple[str, ...]


def words_of(name: str) -> list[str]:
    """Runs of letters: digits and signs separate words."""
    return re.findall(r"[^\W\d_]+", name.casefold())


def find_splits(path: Path, dataset: str, endings: tuple[str, ...]) -> Found:
    """The files below a folder by split; hidden ones are passed over.

    A split is named by a word in the file's name, or by a folder. Raises FileNotFoundError where no name says a split,
    ValueError for files that may be of several sets.
    """
    # A link that leads nowhere is a part that is missing: whoever reads it says so.
    there = (file for file in below(path) if file.name.endswith(endings))
    everything = sorted(file for file in there if file.is_file() or not file.exists())
    said = {file: splits_in_name(file, path) for file in everything}
    named = [file for file in everything if said[file]]
    if not named:
        raise no_split_error(path, dataset, endings, everything)
    taken = of_one_set(named, said, path, dataset)
    for file in taken:
        if len(said[file]) > 1:
            both = " and ".join(sorted(said[file]))
            raise ValueError(f"dataset {dataset}: the name of {file} says {both}: expected one split, so rename it")
    files: dict[str, list[Path]] = {}
    for split in SPLITS:
        if of_split := [file for file in taken if split in said[file]]:
            files[split] = files_of_one_kind(of_split, path, dataset)
    notes = *split_notes(files, path), *incomplete_notes(files), *passed_over_notes(everything, files, path)
    return Found(files, notes)


def below(path: Path) -> Iterator[Path]:
    """Files at any depth, in linked folders too, each folder once; none that is hidden, or in a folder as __MACOSX."""
    seen = set()
    for place, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(place, name) for name in files if real not in seen and not name.startswith("."))
        seen.add(real)


def splits_in_name(file: Path, path: Path) -> set[str]:
    """What the names of a file and its folders say; one split where they are plain."""
    return {MEANING[word] for part in file.relative_to(path).parts for word in words_of(part) if word in MEANING}


def no_split_error(path: Path, dataset: str, endings: tuple[str, ...], everything: list[Path]) -> FileNotFoundError:
    wanted = " and ".join(f"{split}*{endings[0]}" for split in ("train", TEST))
    if not everything:
        return FileNotFoundError(f"dataset {dataset}: expected {wanted} there, found neither")
    kind = dataset.partition(":")[0]
    found = counted(len(everything), "file whose name says", "files whose names say")
    return FileNotFoundError(
        f"dataset {dataset}: expected {wanted} there, found {found} no split, such as "
        f"{everything[0].relative_to(path)}: rename them, or take one as the test split by {kind}:{everything[0]}"
    )


def of_one_set(files: list[Path], said: dict[Path, set[str]], path: Path, dataset: str) -> list[Path]:
    """Those of a single set: of the folder itself and `data`, or else of the only other folder."""
    sets: dict[tuple[str, ...], list[Path]] = {}
    for file in files:
        folders = file.relative_to(path).parts[:-1]
        place = tuple(part for part in folders if not any(word in MEANING for word in words_of(part)))
        sets.setdefault(() if place in USUAL else place, []).append(file)
    if any(said[file] & {"train", TEST} for file in sets.get((), ())):
        return sets[()]
    if len(sets) > 1:
        kind = dataset.partition(":")[0]
        places = [*sorted("/".join(place) for place in sets if place), *(["."] if () in sets else [])]
        raise ValueError(
            f"dataset {dataset} holds {len(sets)} sets: {', '.join(places[:20])}: name one, as "
            f"{kind}:{path / places[0]}"
        )
    return next(iter(sets.values()))


def files_of_one_kind(files: list[Path], path: Path, dataset: str) -> list[Path]:
    """A split's files, if they are parts of the same: in one folder, and their names differ by numbers.

    Whatever begins with the split's word, as train-a and train_b do, is a part of it.
    """
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        here, there = (folder.relative_to(path) for folder in folders[:2])
        raise ValueError(
            f"dataset {dataset}: files of one split lie in {here} and in {there}: expected one of the two, "
            "so move the other away"
        )
    by_name = [file for file in files if any(word in MEANING for word in words_of(file.name))]
    leading = [file for file in by_name if words_of(file.name)[0] in MEANING and file.name[0].isalpha()]
    forms = {tuple(words_of(file.name)): file.name for file in by_name}
    if not leading and len(forms) > 1:
        one, other = sorted(forms.values())[:2]
        raise ValueError(
            f"dataset {dataset}: {one} and {other} in {folders[0]} may be of two sets: expected names that begin with "
            "the split, or differ by numbers"
        )
    return leading or by_name or files


def split_notes(files: dict[str, list[Path]], path: Path) -> list[str]:
    """Where each split lies, if that is not where Parquet files of old lay."""
    places = {split: listed[0].parent.relative_to(path) for split, listed in files.items()}
    plain = all(place.parts in USUAL and split != "validation" for split, place in places.items())
    alike = all(len({tuple(words_of(file.name)) for file in listed}) == 1 for listed in files.values())
    if plain and alike and all(file.name.startswith(split) for split, listed in files.items() for file in listed):
        return []
    where = (
        f"{split} {listed[0].relative_to(path)}"
        if len(listed) == 1
        else f"{split} {len(listed)} files in {places[split]}"
        for split, listed in files.items()
    )
    return ["splits: " + ", ".join(where)]


def incomplete_notes(files: dict[str, list[Path]]) -> Iterator[str]:
    """Said of files that count themselves, as train-00000-of-00005 does, where some are not there."""
    for split, listed in files.items():
        counts = [re.search(r"-of-0*([0-9]+)\b", file.name) for file in listed]
        expected = {int(count[1]) for count in counts if count}
        if len(expected) == 1 and all(counts) and len(listed) < (most := expected.pop()):
            yield f"{split}: only {counted(len(listed), f'of {most} files is', f'of {most} files are')} there"


def passed_over_notes(everything: list[Path], files: dict[str, list[Path]], path: Path) -> list[str]:
    taken = {file for listed in files.values() for file in listed}
    others = [str(file.relative_to(path)) for file in everything if file not in taken]
    if not others:
        return []
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return [f"passed over: {', '.join(others[:3])}{more}"]
