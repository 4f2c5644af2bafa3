"""Messages about weights: in one line what was taken of a file, or why none of it fits."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustlib.models.checkpoints import Weights
from robustlib.models.extra_tensors import Fit, Normalisation, first_names
from robustlib.models.layers import Normalize
from robustlib.models.tensor_names import COUNTER, own_prefixes, prefix_counts, same_shape, without_wrappers
from robustlib.number_text import counted

QUANTISED = ("_packed_params", "zero_point", "qweight", "qzeros", "SCB", "quant_map")  # ends of names


def normalize_line(found: Normalisation) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (found.mean, found.std))
    return f"`normalize: {{mean: [{mean}], std: [{std}]}}`"


def dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def describe_load(model: nn.Module, own: Weights, fit: Fit) -> list[str]:
    """What was taken, and what was done to it; nothing where it is simply the file's."""
    layered = isinstance(getattr(model, "normalize", None), Normalize)  # weights come with this layer or without
    words = [f"took {fit.place!r}"] if fit.place else []
    for name, (there, _) in fit.tensors.items():
        if there not in (name, name.removeprefix("net.") if layered else name):
            words.append(f"{there!r} as {name!r} and so on")
            break
    if fit.filled:
        words.append(f"{len(fit.filled)} {COUNTER} filled in")
    if fit.kept and not (layered and set(fit.kept) == {"normalize.mean", "normalize.std"}):
        words.append(f"{first_names(fit.kept)} as the model's code sets them")
    kinds = {
        (dtype_name(value), dtype_name(own[name])) for name, (_, value) in fit.tensors.items() if not is_lazy(own[name])
    }
    words += [f"{one} as {other}" for one, other in sorted(kinds) if one != other]
    if dropped := fit.extra.dropped:
        words.append(f"left out {len(dropped)} that the model has no place for, first {first_names(dropped, 1)}")
    return words


def describe_misfit(own: Weights, sets: Mapping[str, Weights]) -> str:
    """Why no set fits, told of the one that comes nearest."""
    if not own:
        return "it has no tensors to load"
    ours = without_wrappers(own)
    found = []
    for outer in own_prefixes(ours, set(own) - {"normalize.mean", "normalize.std"}):
        expected_names = {name.removeprefix(outer): there for name, there in ours.items() if name.startswith(outer)}
        for place, given in sets.items():
            counts = prefix_counts(expected_names, without_wrappers(given)) or Counter({"": 0})
            prefix, count = max(counts.items(), key=lambda one: (one[1], -len(one[0])))
            found.append((count, len(given), place, prefix, expected_names))
    _, _, place, prefix, expected_names = max(found, key=lambda one: one[:2])
    words = differences(own, expected_names, sets[place], prefix)
    quantised = "; they look quantised: expected those before that" if looks_quantised(sets[place]) else ""
    return (f"in {place!r} " if place else "") + words + quantised


def differences(own: Weights, expected_names: Mapping[str, str], given: Weights, prefix: str) -> str:
    """The first names that only one side has; where there are none, the first shape that differs."""
    theirs = without_wrappers(given)
    both = {theirs[prefix + name]: mine for name, mine in expected_names.items() if prefix + name in theirs}
    missing = sorted(
        mine for name, mine in expected_names.items() if mine not in both.values() and not name.endswith(COUNTER)
    )
    unknown = sorted(there for there in theirs.values() if there not in both)
    parts = [f"{counted(len(missing), 'tensor')} missing, first {first_names(missing)}"] if missing else []
    parts += [f"{counted(len(unknown), 'tensor')} too many, first {first_names(unknown)}"] if unknown else []
    shapes = sorted((there, mine) for there, mine in both.items() if not same_shape(given[there], own[mine]))
    if shapes:
        there, mine = shapes[0]
        more = f" ({len(shapes)} tensors have another shape)" if len(shapes) > 1 else ""
        expected = tuple(own[mine].shape) if isinstance(own[mine], Tensor) else "no tensor"
        parts.append(f"{there!r} has shape {tuple(given[there].shape)}, the model expects {expected}{more}")
    return "; ".join(parts)


def looks_quantised(given: Weights) -> bool:
    return any(name.endswith(QUANTISED) or value.is_quantized for name, value in given.items())
