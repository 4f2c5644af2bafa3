"""The known name that a wrong one was meant to be: what every refusal of a name ends with."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

NEAR = 0.6  # of difflib's ratio: two letters that changed places in a word of three
AS_NEAR = 0.06  # behind the nearest, up to which a second one may have been meant as well
MOST_LETTERS = 100  # of a name that is looked at: whoever types more meant no name


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`: did you mean 'pgd'?`, or with two that are as near; empty where no known name is. Case does not count.

    Nothing is ever taken for the name that was meant: names are part of what jobs are told apart by.
    """
    if not isinstance(name, str) or len(name) > MOST_LETTERS:
        return ""
    wrong, names = name.casefold(), {str(each).casefold(): str(each) for each in known}
    found = get_close_matches(wrong, names, 2, NEAR)
    meant = [names[near] for near in found if ratio(near, wrong) >= ratio(found[0], wrong) - AS_NEAR]
    return f": did you mean {' or '.join(map(repr, meant))}?" if meant else ""


def near_file(path: Path) -> str:
    """The same of a file that is not there: one beside it of the same kind, whose name is near."""
    try:
        beside = [other.stem for other in path.parent.iterdir() if other.suffix == path.suffix]
    except (OSError, ValueError):
        return ""
    meant = did_you_mean(path.stem, beside)
    return re.sub(r"'([^']*)'", lambda stem: repr(str(path.with_name(f"{stem[1]}{path.suffix}"))), meant)


def ratio(one: str, other: str) -> float:
    """How near, as difflib measures it: 1 for the same."""
    return SequenceMatcher(None, one, other).ratio()


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """The sentence that refuses a name: what it is of, all those that there are, and the one that was meant."""
    names = [str(each) for each in known]
    return f"unknown {what} {name!r}, expected one of: {', '.join(names)}{did_you_mean(name, names)}"
