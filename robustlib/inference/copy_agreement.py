"""The agreement of a copy of a model with the model, but for rounding: in logits and in gradients."""

import math
from functools import partial

import torch
from torch import Tensor

from robustlib.inference.cuda_graphs import RecordingFailed
from robustlib.inference.replica import Replica, Unseen
from robustlib.memory import out_of_memory

# How far a copy's logits may lie from the original's, in units of the logits' standard deviation: ours. Rounding of
# float32 stays far below the first, that of half precision below the second; a copy that does something else does not.
FLOAT32_DRIFT = 1e-3
HALF_DRIFT = 0.1
# How far its gradients may lie from the original's, in units of the longer of the two, on average: ours. Measured: at
# most 1e-4 in float32; in bfloat16 0.015 to 0.11 on trained networks and 0.29 on small ones with random weights.
FLOAT32_TURN = 0.05
HALF_TURN = 0.45
# Of which images and values it may be another gradient altogether, in half precision. One that has vanished is no other
# one: it is computed in float32.
OTHER, OTHERS = 0.9, 1 / 16
STEP = 0.1  # how far along the gradient float16's range is looked at, in each pixel
DIFFERENTIATED = 16  # images whose gradients are compared
REFUSAL = 80  # characters of an error's first line, for the mode


def compare(
    replica: Replica, sample: Tensor, reference: Tensor, slopes: Tensor | None, sizes: tuple[int, ...] | None = None
) -> tuple[float, str]:
    """How far the replica's logits lie from the reference, and what is wrong with it: nothing where that is empty.

    reference: the model's logits for the sample.  slopes: what `slopes_of` gives for it; None where it has none.
    sizes: how many images to compare on at once, in turn; where it is None, the fewest, see `unseen`.
    """
    exact = replica.precision == torch.float32
    allowed = (FLOAT32_DRIFT if exact else HALF_DRIFT) * reference.std().item()
    drifts, few = [0.0], slopes if slopes is None else slopes[:DIFFERENTIATED]
    for size in compared_sizes(replica, sample) if sizes is None else sizes:
        x, expected = repeated(sample, size), repeated(reference, size)
        if replica.recorded:
            # Recorded on other images than it is compared on: it may answer for ever what it was recorded with.
            replica(1 - x)
            replica.values_and_grads(1 - x, two_values)
        drifts.append((replica(x) - expected).abs().max().item())
        if not drifts[-1] <= allowed:  # NaN too
            return drifts[-1], "other logits" if math.isfinite(drifts[-1]) else "numbers beyond its range"
        found = slopes_of(replica, x)
        if few is not None:
            n = min(len(found), len(few))
            turned = turns(found[:n], few[:n])
            other = (turned > OTHER) & (found[:n] != 0).flatten(2).any(2)
            if not turned.mean() <= (FLOAT32_TURN if exact else HALF_TURN) or other.float().mean() > OTHERS:
                return drifts[-1], "other gradients"
    return max(drifts), ""


def beyond(replica: Replica, exact: Replica, sample: Tensor, slopes: Tensor | None) -> str:
    """What is wrong with a copy in float16 a step along the gradient and against it, where attacks go: its range may
    end there, with logits that are finite and another function's.
    """
    if replica.precision != torch.float16 or slopes is None:
        return ""
    few = sample[: len(slopes)]
    x = torch.cat([(few + sign * STEP * slopes[:, 0].sign()).clamp(0, 1) for sign in (1, -1)])
    expected = exact(x)
    far = (replica(x) - expected).abs().max().item()
    return "" if far <= HALF_DRIFT * expected.std().item() else "other logits where attacks go"


def compared_sizes(replica: Replica, sample: Tensor) -> tuple[int, ...]:
    """Numbers of images to compare a replica on. On a CPU all batch sizes agree to the bit: see `steady_sizes`."""
    if sample.is_cuda or replica.recorded:
        return tuple(dict.fromkeys((*replica.sizes[:1], len(sample))))
    return (len(sample),)


def unseen(replica: Replica, sample: Tensor, reference: Tensor, slopes: Tensor | None, drift: float) -> Unseen | None:
    """The batch sizes that `compare` has left out, each of which costs recordings, and how to compare at one of them.

    drift: how far logits may lie from the model's.
    """
    if not (sample.is_cuda or replica.recorded):
        return None
    given = partial(fault_at, sample=sample, reference=reference, slopes=slopes, drift=drift)
    return Unseen(set(replica.sizes[1:]), given)


def fault_at(
    replica: Replica, size: int, *, sample: Tensor, reference: Tensor, slopes: Tensor | None, drift: float
) -> str:
    """What is wrong with the replica at this batch size; nothing where that is empty."""
    try:
        found, fault = compare(replica, sample, reference, slopes, (size,))
    except Exception as error:  # what a smaller batch did not raise, whatever it is: there the copy is not used
        return refusal(error)
    return fault or ("" if found <= drift else "other logits")


def refusal(error: Exception) -> str:
    """What a copy raised when it was called, in few words."""
    if out_of_memory(error):
        return "no memory for it"
    if isinstance(error, RecordingFailed):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f' ({lines[0][:REFUSAL]})' if lines else ''}"


def repeated(rows: Tensor, n: int) -> Tensor:
    return rows.repeat(-(-n // len(rows)), *[1] * (rows.ndim - 1))[:n]


def two_values(logits: Tensor) -> Tensor:
    """A value of all logits, and its negative, whose gradient is the other way: not to be taken for the first one's."""
    weighted = (logits * torch.linspace(-1, 1, logits.shape[1], device=logits.device)).sum(1)
    return torch.stack([weighted, -weighted], 1)


def slopes_of(replica: Replica, x: Tensor) -> Tensor:
    """Gradients to compare, shape (B, 2, ...). Of no more images than needed, where no batch size is to be tried."""
    few = x if replica.recorded else x[:DIFFERENTIATED]
    return replica.values_and_grads(few, two_values)[2]


def known_slopes(replica: Replica, x: Tensor) -> Tensor | None:
    """The same of a model that may have none."""
    try:
        return slopes_of(replica, x)
    except Exception as error:  # whatever a user's model raises when it is differentiated
        if out_of_memory(error):
            raise
        return None


def turn(found: Tensor, expected: Tensor) -> float:
    """The mean distance of two gradients in units of the longer one; NaN where there is one."""
    return turns(found, expected).mean().item()


def turns(found: Tensor, expected: Tensor) -> Tensor:
    """That distance for each image and value, shape (B, V)."""
    found, expected = found.flatten(2).float(), expected.flatten(2).float()
    longer = torch.maximum(found.norm(dim=2), expected.norm(dim=2))
    return (found - expected).norm(dim=2) / longer.clamp_min(torch.finfo(torch.float32).tiny)
