"""The words that name a split, as Hugging Face's `datasets` takes them, in any case."""

import pytest

from robustlib.datasets.split_keywords import is_keyword, split_named

KEYWORDS = {
    "train": ["train", "training", "trainset"],
    "validation": ["validation", "valid", "dev", "val"],
    "test": ["test", "testing", "eval", "evaluation", "testset"],
}


@pytest.mark.parametrize("split, word", [(split, word) for split, words in KEYWORDS.items() for word in words])
def test_keywords_in_any_case_and_within_names(split: str, word: str):
    for name in (word, word.upper(), word.title()):
        assert split_named(name) == split and is_keyword(name)
        for longer in (
            f"seg_{name}",
            f"{name}-00000-of-00002",
            f"my.{name} images",
            f"{name}2",
            f"2{name}",
            f"_{name}",
        ):
            assert split_named(longer) == split and not is_keyword(longer)


@pytest.mark.parametrize(
    "word", ["", "cat", "trainer", "restrain", "latest", "valley", "développement", "trains", "tests", "ëval", "unval"]
)
def test_other_words_name_none(word: str):
    assert split_named(word) is None and not is_keyword(word)


def test_a_name_that_speaks_of_two_splits_names_none():
    assert split_named("train_test_split") is None and split_named("val-or-test") is None
    assert split_named("train_training") == "train"
