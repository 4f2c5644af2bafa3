"""Weights into a model: which of a file's tensors belong to which of the model's, or why they do not."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustlib.models.checkpoints import Weights, read_weights
from robustlib.models.extras import Normalisation, Spare, some, sort_out, statistics_of
from robustlib.models.layers import Normalize

# Parts of names that DataParallel, torch.compile, FSDP and activation checkpoints add, in any place.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
COUNTER = "num_batches_tracked"  # of which only training makes use
LEARNT = ("running_mean", "running_var", COUNTER)  # among buffers
QUANTISED = ("_packed_params", "zero_point", "qweight", "qzeros", "SCB", "quant_map")  # ends of names

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """One way in which a set's tensors are the model's.

    tensors: by the model's names, each with its name in the file.  place: of the set.  prefix: that its names have and
    the model's have not, wrappers' parts left out.  filled, kept: of the model but not in the file; counters, and what
    its own code sets.  spare: what the set holds besides.
    """

    place: str
    prefix: str
    tensors: dict[str, tuple[str, Tensor]]
    filled: tuple[str, ...]
    kept: tuple[str, ...]
    spare: Spare

    @property
    def entry(self) -> str:
        """What chooses it alone."""
        return ".".join(filter(None, [self.place, self.prefix.removesuffix(".")])) or "."


def load_weights(
    model: nn.Module, path: Path, entry: str | None = None, *, may_normalize: bool = False, tell: Tell | None = None
) -> None:
    """Load a file's weights into a built model, with or without its first layer among them.

    entry: which of several sets in the file, such as "state_dict_ema".  may_normalize: whether a normalisation that the
    file has beside the network becomes the model's first layer.  tell: is told in one line what was taken, where that
    is not simply all.  Raises FileNotFoundError, or ValueError where nothing fits, or several sets do.
    """
    sets = read_weights(path)
    if entry is not None:
        sets = {entry: chosen(sets, entry, str(path))}
    put(model, sets, str(path), may_normalize=may_normalize, tell=tell)


def chosen(sets: Mapping[str, Weights], entry: str, source: str) -> Weights:
    """The set of this name, or those tensors of one whose names begin so."""
    if entry in sets or (entry == "." and "" in sets):
        return sets[entry if entry in sets else ""]
    for place, given in sets.items():
        if place and not entry.startswith(f"{place}."):
            continue
        prefix = entry.removeprefix(f"{place}." if place else "") + "."
        for names in (bare(given), {name: name for name in given}):
            inside = {
                name.removeprefix(prefix): given[there] for name, there in names.items() if name.startswith(prefix)
            }
            if inside:
                return inside
    known = ", ".join(repr(place or ".") for place in list(sets)[:8])
    raise ValueError(f"weights {source} have no entry {entry!r} with tensors, they have: {known}")


def put(
    model: nn.Module, sets: Mapping[str, Weights], source: str, *, may_normalize: bool = False, tell: Tell | None = None
) -> None:
    """Load the one set that fits: every tensor or none. source: what the sets are called."""
    own = model.state_dict()
    learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    learnt |= {name for name in own if name.endswith(LEARNT)}
    fits = [fit for place, given in sets.items() for fit in fits_of(own, learnt & own.keys(), place, given)]
    if not fits:
        raise ValueError(f"weights {source} do not fit the model: {misfit(own, sets)}")
    fit = only_one(fits, source)
    words = described(model, own, fit)
    first_layer = settle(fit, own, source, may_normalize=may_normalize)
    if first_layer:
        words.append(f"{some(fit.spare.normalisations[0].names)} as the model's first layer")
    for name, (there, value) in fit.tensors.items():
        check_kind(source, there, value, own[name])
    # Into the model's own state, which knows the versions of its layers: what is not replaced stays as it is.
    own.update(first_layer | {name: value for name, (_, value) in fit.tensors.items()})
    model.load_state_dict(own)
    if words and tell is not None:
        tell(f"weights {source}: {', '.join(words)}")


def bare(names: Iterable[str]) -> dict[str, str]:
    """Names without the parts that wrappers add, each with the name as it is; as they are where two would be one."""
    names = list(names)
    short = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return short if len(short) == len(names) and "" not in short else {name: name for name in names}


def fits_of(own: Weights, learnt: set[str], place: str, given: Weights) -> list[Fit]:
    """The ways in which a set is the model's; of several with the same numbers, or with nothing strange beside, one."""
    if own.keys() <= given.keys():  # name by name, whatever the names may mean
        found = fit_at(own, {name: name for name in own}, {name: name for name in given}, "", "", place, given)
        if found is not None and not found.spare.strange:
            return [found]
    ours, theirs = bare(own), bare(given)
    for outer in outers(ours, learnt):
        inside = {name.removeprefix(outer): there for name, there in ours.items() if name.startswith(outer)}
        tried = [
            fit_at(own, inside, theirs, prefix, outer, place, given)
            for prefix in sorted(votes(inside, theirs), key=lambda prefix: (len(prefix), prefix))
        ]
        found = [fit for fit in tried if fit is not None]
        if found:
            clean = [fit for fit in found if not fit.spare.strange]
            return clean[:1] or found
    return []


def outers(ours: Mapping[str, str], learnt: set[str]) -> list[str]:
    """Prefixes of the model's own names within which all that it learns lies: weights may be those of a part of it."""
    names = [name for name, there in ours.items() if there in learnt] or list(ours)
    first = names[0].split(".")[:-1] if names else []
    chain = ["".join(f"{part}." for part in first[:n]) for n in range(len(first) + 1)]
    return [outer for outer in chain if all(name.startswith(outer) for name in names)]


def votes(inside: Mapping[str, str], theirs: Iterable[str]) -> Counter[str]:
    """How many of the model's names are found behind each prefix of the file's."""
    found: Counter[str] = Counter()
    for name in theirs:
        rest = name
        while rest:
            if rest in inside:
                found[name[: len(name) - len(rest)]] += 1
            rest = rest.partition(".")[2]
    return found


def fit_at(
    own: Weights,
    inside: Mapping[str, str],
    theirs: Mapping[str, str],
    prefix: str,
    outer: str,
    place: str,
    given: Weights,
) -> Fit | None:
    """The fit behind this prefix, if all that is inside of the model is there and of its shape."""
    tensors, filled = {}, []
    for name, mine in inside.items():
        there = theirs.get(prefix + name)
        if there is None:
            if not name.endswith(COUNTER):
                return None
            filled.append(mine)
        elif not same_shape(given[there], own[mine]):
            return None
        else:
            tensors[mine] = (there, given[there])
    if not tensors:
        return None
    extras = {
        name: (there, given[there])
        for name, there in theirs.items()
        if not name.startswith(prefix) or name.removeprefix(prefix) not in inside
    }
    taken = {name: tensors[mine][1] for name, mine in inside.items() if mine in tensors}
    kept = tuple(name for name in own if name not in tensors and name not in filled)
    return Fit(place, prefix, tensors, tuple(filled), kept, sort_out(extras, taken))


def same_shape(given: Tensor, own: Tensor) -> bool:
    return isinstance(own, Tensor) and (is_lazy(own) or given.shape == own.shape)


def only_one(fits: list[Fit], source: str) -> Fit:
    if len(fits) > 1:
        entries = [fit.entry for fit in fits]
        raise ValueError(
            f"weights {source} hold several sets that fit the model, {', '.join(repr(entry) for entry in entries)}: "
            f"choose one, such as --weights {source}:{entries[-1]} (in a study `weights: FILE:KEY`)"
        )
    fit = fits[0]
    if fit.spare.strange:
        way = f"; --weights {source}:{fit.entry} takes the model's alone" if fit.prefix else ""
        raise ValueError(
            f"weights {source} do not fit the model: {len(fit.spare.strange)} tensors too many, first "
            f"{some(fit.spare.strange)}, which may change what it computes{way}"
        )
    return fit


def settle(fit: Fit, own: Weights, source: str, *, may_normalize: bool) -> Weights:
    """What a normalisation in the file makes of the model's first layer. Raises ValueError where the model has none, or
    another, and does not take it: without it other numbers come out.
    """
    held = statistics_of({name: own[name] for name in fit.kept if isinstance(own[name], Tensor)})
    found = {(one.mean, one.std): one for one in reversed(fit.spare.normalisations)}
    if not found or (len(found) == 1 and any(one.agrees(mine) for one in found.values() for mine in held)):
        return {}
    first = next(iter(found.values()))
    if may_normalize and len(found) == 1 and len(held) == 1 and len(held[0].mean) == len(first.mean):
        parts = zip(held[0].names, (first.mean, first.std), strict=True)
        return {name: torch.tensor(values).reshape(own[name].shape) for name, values in parts}
    way = f"; where its code does so already, --weights {source}:{fit.entry}" if fit.prefix else ""
    raise ValueError(
        f"weights {source} were trained behind a normalisation, {some(first.names)}, that the model has not: "
        f"say {as_line(first)} (or --mean and --std){way}"
    )


def as_line(found: Normalisation) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (found.mean, found.std))
    return f"`normalize: {{mean: [{mean}], std: [{std}]}}`"


def check_kind(source: str, name: str, value: Tensor, own: Tensor) -> None:
    """Raises ValueError for a tensor that holds no numbers that the model's could take over as they are."""
    problem = None
    if value.is_meta:
        problem = "lies on the meta device: it has a shape, and no numbers"
    elif value.is_quantized or value.layout != torch.strided:
        problem = f"is {'quantised' if value.is_quantized else 'sparse'}"
    elif value.is_complex() and not own.is_complex():
        problem = "is complex"
    elif own.is_floating_point() and not value.is_floating_point() and not value.is_complex():
        problem = f"holds whole numbers ({kind(value)}): it is quantised"
    elif value.is_floating_point() and not own.is_floating_point() and not name.endswith(COUNTER):
        problem = f"is {kind(value)}"
    if problem is not None:
        expected = f"expected {kind(own)}, as the model has it"
        raise ValueError(f"weights {source} do not fit the model: {name!r} {problem}; {expected}")


def kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def described(model: nn.Module, own: Weights, fit: Fit) -> list[str]:
    """What was taken, and what was done to it; nothing where it is simply the file's."""
    layered = isinstance(
        getattr(model, "normalize", None), Normalize
    )  # our own layout, with the first layer or without
    words = [f"took {fit.place!r}"] if fit.place else []
    for name, (there, _) in fit.tensors.items():
        if there not in (name, name.removeprefix("net.") if layered else name):
            words.append(f"{there!r} as {name!r} and so on")
            break
    if fit.filled:
        words.append(f"{len(fit.filled)} {COUNTER} filled in")
    if fit.kept and not (layered and set(fit.kept) == {"normalize.mean", "normalize.std"}):
        words.append(f"{some(fit.kept)} as the model's code sets them")
    kinds = {(kind(value), kind(own[name])) for name, (_, value) in fit.tensors.items() if not is_lazy(own[name])}
    words += [f"{one} as {other}" for one, other in sorted(kinds) if one != other]
    if fit.spare.dropped:
        words.append(
            f"left out {len(fit.spare.dropped)} that the model has no place for, first {some(fit.spare.dropped, 1)}"
        )
    return words


def misfit(own: Weights, sets: Mapping[str, Weights]) -> str:
    """Why no set fits, told of the one that comes nearest."""
    if not own:
        return "it has no tensors to load"
    ours = bare(own)
    found = []
    for outer in outers(ours, set(own) - {"normalize.mean", "normalize.std"}):
        inside = {name.removeprefix(outer): there for name, there in ours.items() if name.startswith(outer)}
        for place, given in sets.items():
            counts = votes(inside, bare(given)) or Counter({"": 0})
            prefix, count = max(counts.items(), key=lambda one: (one[1], -len(one[0])))
            found.append((count, len(given), place, prefix, inside))
    _, _, place, prefix, inside = max(found, key=lambda one: one[:2])
    words = differences(own, inside, sets[place], prefix)
    quantised = "; they look quantised: expected those before that" if looks_quantised(sets[place]) else ""
    return (f"in {place!r} " if place else "") + words + quantised


def differences(own: Weights, inside: Mapping[str, str], given: Weights, prefix: str) -> str:
    """The first names that only one side has; where there are none, the first shape that differs."""
    theirs = bare(given)
    both = {theirs[prefix + name]: mine for name, mine in inside.items() if prefix + name in theirs}
    missing = sorted(mine for name, mine in inside.items() if mine not in both.values() and not name.endswith(COUNTER))
    strange = sorted(there for there in theirs.values() if there not in both)
    parts = [f"{len(missing)} tensors missing, first {some(missing)}"] if missing else []
    parts += [f"{len(strange)} tensors too many, first {some(strange)}"] if strange else []
    shapes = sorted((there, mine) for there, mine in both.items() if not same_shape(given[there], own[mine]))
    if shapes:
        there, mine = shapes[0]
        more = f" ({len(shapes)} tensors have another shape)" if len(shapes) > 1 else ""
        expected = tuple(own[mine].shape) if isinstance(own[mine], Tensor) else "no tensor"
        parts.append(f"{there!r} has shape {tuple(given[there].shape)}, the model expects {expected}{more}")
    return "; ".join(parts)


def looks_quantised(given: Weights) -> bool:
    return any(name.endswith(QUANTISED) or value.is_quantized for name, value in given.items())
