"""Names of splits, in folders' and files' names."""

import re

# As Hugging Face's `datasets` takes them, https://huggingface.co/docs/datasets/repository_structure.
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {keyword: split for split, keywords in KEYWORDS.items() for keyword in keywords}


def split_named(word: str) -> str | None:
    """The split that a name speaks of: "train", "test" or "validation"; None for none, or for several.

    A keyword counts in any case, where no letter stands next to it: "Training", "seg_train", "test-00000-of-00001".
    """
    found = {SPLIT_OF[part] for part in re.split(r"[\W\d_]+", word.lower()) if part in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def is_keyword(word: str) -> bool:
    """Whether a name is the name of a split and nothing else."""
    return word.lower() in SPLIT_OF
