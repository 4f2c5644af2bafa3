"""Names of tensors, in a file and in a model: what wrappers add to them, and where one is found behind the other."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.nn.parameter import is_lazy

# Parts of names that DataParallel, torch.compile, FSDP and activation checkpoints add, in any place.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
COUNTER = "num_batches_tracked"  # of which only training makes use


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Names without the parts that wrappers add, each with the name as it is; as they are where two would be one."""
    names = list(names)
    short = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return short if len(short) == len(names) and "" not in short else {name: name for name in names}


def own_prefixes(ours: Mapping[str, str], learnt: set[str]) -> list[str]:
    """Prefixes of the model's own names within which all that it learns lies: weights may be those of a part of it."""
    names = [name for name, there in ours.items() if there in learnt] or list(ours)
    first = names[0].split(".")[:-1] if names else []
    chain = ["".join(f"{part}." for part in first[:n]) for n in range(len(first) + 1)]
    return [outer for outer in chain if all(name.startswith(outer) for name in names)]


def prefix_counts(inside: Mapping[str, str], theirs: Iterable[str]) -> Counter[str]:
    """How many of the model's names are found behind each prefix of the file's."""
    found: Counter[str] = Counter()
    for name in theirs:
        rest = name
        while rest:
            if rest in inside:
                found[name[: len(name) - len(rest)]] += 1
            rest = rest.partition(".")[2]
    return found


def same_shape(given: Tensor, own: Tensor) -> bool:
    return isinstance(own, Tensor) and (is_lazy(own) or given.shape == own.shape)
