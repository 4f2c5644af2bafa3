"""Models called at a few fixed batch sizes, so that an example's numbers do not depend on its neighbours.

A batch of one goes through other code than a batch of 64, and its last bits differ. Batches filled up to fixed sizes
give every example the same bits, whoever shares its batch; and fixed sizes are what CUDA graphs want.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.inference.cuda_graphs import NO_GRADIENT
from robustlib.inference.model_modes import no_autocast, strict_float32
from robustlib.memory import free, out_of_memory
from robustlib.model_calls import Careful, hand, rows_of

# Measured: sizes that are multiples of 8 agree to the bit, with one thread and with two, where convolutions are in
# bfloat16 or float32 and matrices in float32; on some CPUs not the smallest one: see leave_unsteady in fast_copy.py.
CPU_SIZES = (*range(8, 136, 8), 256, 512)
CPU_BYTES = 4 * 64 * 3 * 32 * 32  # of the images of a pass, of whose activations a CPU's caches still hold enough
CUDA_SIZES = (128, 512, 2048)
FULL = 0.75  # a batch at least so full is filled up; a smaller one is split

FEW = 64  # pixels
NONE = torch.empty(0, dtype=torch.int64)
Net = Callable[[Tensor], Tensor]
Values = Callable[..., Tensor]


def batch_sizes(x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[int, ...]:
    """The fixed batch sizes for images like these, in this arithmetic, on their device."""
    if x.device.type == "cuda":
        return CUDA_SIZES
    return tuple(
        size for size in CPU_SIZES if size == CPU_SIZES[0] or size * x[0].numel() * dtype.itemsize <= CPU_BYTES
    )


@dataclass
class Count:
    """Examples passed forward, and gradients taken besides, without the filling. overflows: those of them that were
    computed anew in float32, since half precision gave what is no number, or a gradient that had vanished.
    """

    forwards: int = 0
    gradients: int = 0
    overflows: int = 0


class Engine(Careful, nn.Module):
    """A model in eval mode, called at fixed batch sizes.

    net: what is called, with images of `memory_format` and `dtype`.  precision: what it computes in.
    sizes: batch sizes, rising; empty for a model that does not take filled batches.  mode: what `net` is, in words.
    drift: how far `net`'s logits may lie from those of the model that it stands for; 0 where it is that model.
    judge: what an attack asks before it takes an image for broken, None where `net` needs no other; judge_drift: the
    drift of that.  finer: the copy in float32 of one in half precision, which takes the last steps where rounding
    hides them; in a tuple, so that it is no part of this module.  rougher: of one in float32 that in half precision,
    for gradients that go with its own logits.  spare: of one in half precision, the copy in float32 that computes the
    examples whose numbers are beyond its range.
    most: examples at once, for a model without fixed sizes, where memory has shown that it holds no more.
    """

    finer: "tuple[Engine, ...]" = ()
    rougher: "tuple[Engine, ...]" = ()
    spare: "tuple[Engine, ...]" = ()
    most: int | None = None

    def __init__(
        self,
        net: Net,
        *,
        sizes: tuple[int, ...] = CPU_SIZES,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        mode: str = "float32",
        precision: torch.dtype = torch.float32,
        drift: float = 0.0,
        judge: Net | None = None,
        judge_drift: float = 0.0,
    ):
        super().__init__()
        self.net = net
        self.sizes = sizes
        self.dtype = dtype
        self.memory_format = memory_format
        self.mode = mode
        self.precision = precision
        self.drift = drift
        self.judge = judge
        self.judge_drift = judge_drift
        self.count = Count()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, shape (B, classes)."""

        def call(chunk: slice) -> tuple[Tensor]:
            images = self.fill(x[chunk])
            rows = rows_of(self.net(images), len(images))[: chunk.stop - chunk.start]
            return (rows.to(torch.float32, copy=True),)  # the next call may write over what this one gave

        self.count.forwards += len(x)
        with self.arithmetic():
            (logits,) = self.each(len(x), call)
        if len(rows := self.beyond_range(logits)):
            logits[rows] = self.spare[0](x[rows])
        return logits

    def differentiate(self, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the function `differentiate`."""

        def call(chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
            return pull(
                self.net,
                self.fill(x[chunk]),
                values,
                *(row[chunk] for row in rows),
                half=self.precision != torch.float32,
                n=chunk.stop - chunk.start,
                doubt=bool(self.spare),
            )

        with self.arithmetic():
            logits, found, gradients = self.each(len(x), call)
        self.count.forwards += len(x)
        self.count.gradients += found.numel()
        # Only float16's range ends before float32's; a gradient that has vanished is NaN from its first pixel on.
        pixels = gradients if self.precision == torch.float16 else gradients.flatten(2)[:, :, :1]
        if len(bad := self.beyond_range(logits, found, pixels)):
            again = self.spare[0].differentiate(x[bad], values, *(row[bad] for row in rows))
            logits[bad], found[bad], gradients[bad] = again
        return logits, found, gradients

    def arithmetic(self) -> AbstractContextManager[None]:
        """As the copy was compared with its model: float32 is strict, and no autocast of the caller's changes it."""
        return strict_float32() if self.precision == torch.float32 else no_autocast()

    def beyond_range(self, *found: Tensor) -> Tensor:
        """Places of the examples for which half precision found what is no finite number, or lost a gradient.

        An attack would stand still on them, the sign of NaN being zero, and the model would be called robust.
        """
        if not self.spare or math.isfinite(sum(column.sum() for column in found)):
            return NONE
        sums = torch.stack([column.flatten(1).sum(1) for column in found])
        rows = (~sums.isfinite().all(0)).nonzero().squeeze(1)
        self.count.overflows += len(rows)
        return rows

    def each(self, n: int, call: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The call for every chunk of n examples, joined. A batch that memory does not hold is split."""
        parts, start = [], 0
        while start < n or not parts:
            chunk = slice(start, min(start + self.piece(n - start), n))
            try:
                parts.append(call(chunk))
                start = chunk.stop
                continue
            except Exception as error:
                if not out_of_memory(error) or not self.shrink(chunk.stop - chunk.start):
                    raise
            free()  # here, where the error no longer holds what was to be freed
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def piece(self, rest: int) -> int:
        """How many of the remaining examples to take next: so that little of a fixed size is filling."""
        if not self.sizes:
            return max(min(rest, self.most or rest), 1)
        for size in self.sizes:
            if FULL * size <= rest <= size:
                return size
        return max((size for size in self.sizes if size <= rest), default=self.sizes[0])

    def size_of(self, n: int) -> int:
        """To how many a chunk of n examples is filled up: to none more without fixed sizes, since the model's answers
        then depend on its batch. But it may take no batch of one, as BatchNorm in training does not.
        """
        return next((size for size in self.sizes if size >= n), max(n, 2))

    def shrink(self, tried: int) -> bool:
        """After a chunk of so many did not fit: from now on at most half as many as it was filled up to. False where
        nothing smaller is left.
        """
        size = self.size_of(tried) if self.sizes else tried
        half = max(size // 2, 1)
        if self.sizes:
            self.sizes = tuple(fitting for fitting in self.sizes if fitting <= half) or (half,)
        else:
            self.most = half
        return size > 1

    def fill(self, x: Tensor) -> Tensor:
        """The chunk as `net` takes it: filled up with copies of its last example to the next fixed size."""
        size = self.size_of(len(x))
        if 0 < len(x) < size:
            x = torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
        # Always a copy: attacks go on with their own images, and a graph is kept until its gradient is taken.
        return x.detach().to(self.dtype, memory_format=self.memory_format, copy=True)


@torch.enable_grad()
def pull(
    net: Net, x: Tensor, values: Values, *rows: Tensor, half: bool = False, n: int | None = None, doubt: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass forward and one back for each value; `x` may be filled up beyond its first n examples.

    The gradient enters the network scaled to a largest entry of 1 an example, and is scaled back after: half precision
    would otherwise lose the tiny gradients of confident examples.
    doubt: a gradient that vanishes on its way back is given as NaN, for somebody else to compute.
    """
    n = len(x) if n is None else n
    x = x.detach().requires_grad_()
    raw = rows_of(net(hand(net, x)), len(x))
    if not raw.requires_grad:
        raise ValueError(NO_GRADIENT)
    half = half or raw.dtype in (torch.float16, torch.bfloat16)
    kept = torch.promote_types(x.dtype, torch.float32)  # as the images are, whatever the model answers in
    # A tensor of its own: its gradient is taken apart from the network's, in float64 where the model answers so.
    logits = raw.detach()[:n].to(torch.promote_types(raw.dtype, torch.float32), copy=True).requires_grad_()
    found = values(logits, *rows)
    gradients = []
    for k in range(found.shape[1]):
        (slope,) = torch.autograd.grad(found[:, k].sum(), logits, retain_graph=True)
        scale = slope.abs().amax(1, keepdim=True) if half else None
        if scale is not None:
            scale = torch.where(scale > 0, scale, 1.0)
        into = torch.zeros_like(raw)
        into[:n] = slope if scale is None else slope / scale
        (back,) = torch.autograd.grad(raw, x, into, retain_graph=k + 1 < found.shape[1], allow_unused=True)
        if back is None:  # the logits depend on weights, but on no image
            raise ValueError(NO_GRADIENT)
        back = back[:n].to(kept).contiguous()
        back = without_vanished(back, slope) if doubt else back
        gradients.append(back if scale is None else back * scale.to(kept).reshape(-1, *[1] * (x.ndim - 1)))
    return logits.detach().to(kept), found.detach().to(kept), torch.stack(gradients, 1)


def without_vanished(back: Tensor, slope: Tensor) -> Tensor:
    """The images' gradients, NaN for those that are zero everywhere, though that of the logits, `slope`, is not."""
    flat = back.flatten(1)
    zero = (flat[:, :FEW] == 0).all(1)  # most gradients are told from zero by a few pixels
    if not zero.any():
        return back
    vanished = zero & (flat == 0).all(1) & (slope != 0).any(1)
    return torch.where(vanished.reshape(-1, *[1] * (back.ndim - 1)), torch.nan, back)


def differentiate(model: nn.Module, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, classes), the values (B, V) that `values(logits, *rows)` gives, their gradients (B, V, C, H, W).

    rows: tensors of B rows that go with the images: classes, targets. No value may depend on another example's logits.
    """
    if isinstance(model, Engine):
        return model.differentiate(x, values, *rows)
    return pull(model, x, values, *rows)
