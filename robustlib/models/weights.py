"""The loading of weights: which of a file's tensors belong to which of the model's, or why they do not."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustlib.models.checkpoints import Weights, read_weights
from robustlib.models.extra_tensors import Fit, Normalisation, first_names, sort_extra_tensors, statistics_of
from robustlib.models.layers import Normalize
from robustlib.models.tensor_names import COUNTER, own_prefixes, prefix_counts, same_shape, without_wrappers
from robustlib.models.weights_messages import describe_load, describe_misfit, dtype_name, normalize_line
from robustlib.names import did_you_mean
from robustlib.normalisations import check_statistics
from robustlib.number_text import counted

LEARNT = ("running_mean", "running_var", COUNTER)  # ends of names, among buffers

Tell = Callable[[str], None]


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
        sets = {entry: chosen_set(sets, entry, str(path))}
    load_fitting_set(model, sets, str(path), may_normalize=may_normalize, tell=tell)


def chosen_set(sets: Mapping[str, Weights], entry: str, source: str) -> Weights:
    """The set of this name, or those tensors of one whose names begin so."""
    if entry in sets or (entry == "." and "" in sets):
        return sets[entry if entry in sets else ""]
    for place, given in sets.items():
        if place and not entry.startswith(f"{place}."):
            continue
        prefix = entry.removeprefix(f"{place}." if place else "") + "."
        for names in (without_wrappers(given), {name: name for name in given}):
            inside = {
                name.removeprefix(prefix): given[there] for name, there in names.items() if name.startswith(prefix)
            }
            if inside:
                return inside
    known = ", ".join(repr(place or ".") for place in list(sets)[:8])
    raise ValueError(
        f"weights {source} have no entry {entry!r} with tensors, they have: {known}{did_you_mean(entry, sets)}"
    )


def load_fitting_set(
    model: nn.Module, sets: Mapping[str, Weights], source: str, *, may_normalize: bool = False, tell: Tell | None = None
) -> None:
    """Load the one set that fits: every tensor or none. source: what the sets are called."""
    own = model.state_dict()
    learnt = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    learnt |= {name for name in own if name.endswith(LEARNT)}
    fits = [fit for place, given in sets.items() for fit in fits_of(own, learnt & own.keys(), place, given)]
    if not fits:
        raise ValueError(f"weights {source} do not fit the model: {describe_misfit(own, sets)}")
    fit = only_one(fits, source)
    words = describe_load(model, own, fit)
    first_layer = first_layer_weights(fit, own, source, may_normalize=may_normalize)
    if isinstance(getattr(model, "normalize", None), Normalize):
        carried = {name: value for name, (_, value) in fit.tensors.items() if name.startswith("normalize.")}
        check_scale(statistics_of(carried), source)
    if first_layer:
        words.append(f"{first_names(fit.extra.normalisations[0].names)} as the model's first layer")
    for name, (there, value) in fit.tensors.items():
        check_dtype(source, there, value, own[name])
    check_shared(source, fit, own)
    # Into the model's own state, which knows the versions of its layers: what is not replaced stays as it is.
    own.update(first_layer | {name: value for name, (_, value) in fit.tensors.items()})
    model.load_state_dict(own)
    if words and tell is not None:
        tell(f"weights {source}: {', '.join(words)}")


def fits_of(own: Weights, learnt: set[str], place: str, given: Weights) -> list[Fit]:
    """The ways in which a set is the model's; of several with the same numbers, or with nothing unknown beside, one."""
    if own.keys() <= given.keys():  # name by name, whatever the names may mean
        found = fit_at(own, {name: name for name in own}, {name: name for name in given}, "", "", place, given)
        if found is not None and not found.extra.unknown:
            return [found]
    ours, theirs = without_wrappers(own), without_wrappers(given)
    for own_prefix in own_prefixes(ours, learnt):
        inside = {name.removeprefix(own_prefix): there for name, there in ours.items() if name.startswith(own_prefix)}
        tried = [
            fit_at(own, inside, theirs, prefix, own_prefix, place, given)
            for prefix in sorted(prefix_counts(inside, theirs), key=lambda prefix: (len(prefix), prefix))
        ]
        found = [fit for fit in tried if fit is not None]
        if found:
            clean = [fit for fit in found if not fit.extra.unknown]
            return clean[:1] or found
    return []


def fit_at(
    own: Weights,
    inside: Mapping[str, str],
    theirs: Mapping[str, str],
    prefix: str,
    own_prefix: str,
    place: str,
    given: Weights,
) -> Fit | None:
    """The fit behind this prefix, if all that is inside of the model is there and of its shape."""
    tensors, filled = {}, []
    for name, mine in inside.items():
        there = theirs.get(prefix + name)
        if there is None:  # one tensor under several names, of which safetensors keeps the first
            there = next((theirs[prefix + n] for n in same_tensor(own, inside, mine) if prefix + n in theirs), None)
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
    return Fit(place, prefix, tensors, tuple(filled), kept, sort_extra_tensors(extras, taken))


def same_tensor(own: Weights, inside: Mapping[str, str], mine: str) -> list[str]:
    """Names under which the model has this very tensor too."""
    there = memory_of(own[mine])
    if there is None:
        return []
    return [name for name, real in inside.items() if real != mine and memory_of(own[real]) == there]


def memory_of(value: Tensor) -> Any:
    """What two names of one tensor have in common; None for what has no memory."""
    plain = isinstance(value, Tensor) and not is_lazy(value) and not value.is_meta and value.numel()
    return (value.data_ptr(), value.shape, value.stride()) if plain else None


def check_shared(source: str, fit: Fit, own: Weights) -> None:
    """Raises ValueError where the file has different numbers for what is one tensor of the model, under two names."""
    first: dict[Any, tuple[str, Tensor]] = {}
    for name, (there, value) in fit.tensors.items():
        place = memory_of(own[name])
        if place is None:
            continue
        other, known = first.setdefault(place, (there, value))
        if known is not value and not torch.equal(known, value):
            raise ValueError(
                f"weights {source} do not fit the model: {other!r} and {there!r} differ, and are one tensor of it"
            )


def only_one(fits: list[Fit], source: str) -> Fit:
    if len(fits) > 1:
        entries = [fit.entry for fit in fits]
        raise ValueError(
            f"weights {source} hold several sets that fit the model, {', '.join(repr(entry) for entry in entries)}: "
            f"choose one, such as --weights {source}:{entries[-1]} (in a study `weights: FILE:KEY`)"
        )
    fit = fits[0]
    if fit.extra.unknown:
        way = f"; --weights {source}:{fit.entry} takes the model's alone" if fit.prefix else ""
        raise ValueError(
            f"weights {source} do not fit the model: {counted(len(fit.extra.unknown), 'tensor')} too many, first "
            f"{first_names(fit.extra.unknown)}, which may change what it computes{way}"
        )
    return fit


def first_layer_weights(fit: Fit, own: Weights, source: str, *, may_normalize: bool) -> Weights:
    """What a normalisation in the file makes of the model's first layer. Raises ValueError where the model has none, or
    another, and does not take it: without it other numbers come out.
    """
    held = statistics_of({name: own[name] for name in fit.kept if isinstance(own[name], Tensor)})
    found = {(one.mean, one.std): one for one in reversed(fit.extra.normalisations)}
    if not found or (len(found) == 1 and any(one.agrees(mine) for one in found.values() for mine in held)):
        return {}
    first = next(iter(found.values()))
    way = f"; --weights {source}:{fit.entry} takes the network alone" if fit.prefix else ""
    check_scale(found.values(), source, way)
    if may_normalize and len(found) == 1 and len(held) == 1 and len(held[0].mean) == len(first.mean):
        parts = zip(held[0].names, (first.mean, first.std), strict=True)
        return {name: torch.tensor(values).reshape(own[name].shape) for name, values in parts}
    way = f"; where its code does so already, --weights {source}:{fit.entry}" if fit.prefix else ""
    raise ValueError(
        f"weights {source} were trained behind a normalisation, {first_names(first.names)}, that the model has not: "
        f"say {normalize_line(first)} (or --mean and --std){way}"
    )


def check_scale(found: Iterable[Normalisation], source: str, way: str = "") -> None:
    """Raises ValueError for a normalisation that is none of images in [0, 1], such as one of images from 0 to 255."""
    for one in found:
        try:
            check_statistics(one.mean, one.std)
        except ValueError as error:
            raise ValueError(
                f"weights {source} hold the normalisation {first_names(one.names)}: {error}{way}"
            ) from error


def check_dtype(source: str, name: str, value: Tensor, own: Tensor) -> None:
    """Raises ValueError for a tensor that holds no numbers that the model's could take over as they are."""
    problem = None
    if value.is_meta:
        problem = "lies on the meta device: it has a shape, and no numbers"
    elif value.is_quantized or value.layout != torch.strided:
        problem = f"is {'quantised' if value.is_quantized else 'sparse'}"
    elif value.is_complex() and not own.is_complex():
        problem = "is complex"
    elif own.is_floating_point() and not value.is_floating_point() and not value.is_complex():
        problem = f"holds whole numbers ({dtype_name(value)}): it is quantised"
    elif value.is_floating_point() and not own.is_floating_point() and not name.endswith(COUNTER):
        problem = f"is {dtype_name(value)}"
    if problem is not None:
        expected = f"expected {dtype_name(own)}, as the model has it"
        raise ValueError(f"weights {source} do not fit the model: {name!r} {problem}; {expected}")
