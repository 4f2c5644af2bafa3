"""Keywords by which a name speaks of a split, in one word or among others."""

from robustlib.datasets.splits import MEANING, words_of


def split_named(name: str) -> str | None:
    """The split that a name speaks of: "train", "test" or "validation"; None for none, or for several.

    A keyword counts in any case, where no letter stands next to it: "Training", "seg_train", "test-00000-of-00001".
    """
    found = {MEANING[word] for word in words_of(name) if word in MEANING}
    return found.pop() if len(found) == 1 else None


def is_keyword(name: str) -> bool:
    """Whether a name is the name of a split and nothing else."""
    return name.casefold() in MEANING
