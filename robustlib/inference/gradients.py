"""Gradients of values of the logits by the images, by one pass forward and one back for each value."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustlib.inference.cuda_graphs import NO_GRADIENT
from robustlib.model_calls import hand, rows_of

FEW = 64  # pixels
Net = Callable[[Tensor], Tensor]
Values = Callable[..., Tensor]  # logits (B, K), rows that go with them -> values (B, V)


@torch.enable_grad()
def pull(
    net: Net,
    x: Tensor,
    values: Values,
    *rows: Tensor,
    half: bool = False,
    n: int | None = None,
    doubt: bool = False,
    looking: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass forward and one back for each value; `x` may be filled up beyond its first n examples.

    The gradient enters the network scaled to a largest entry of 1 an example, and is scaled back after: half precision
    would otherwise lose the tiny gradients of confident examples.
    doubt: a gradient that vanishes on its way back is given as NaN, for somebody else to compute.  looking: at whether
    there is such a one, which a recording cannot.
    """
    check_mode()
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
        back = without_vanished(back, slope, looking) if doubt else back
        gradients.append(back if scale is None else back * scale.to(kept).reshape(-1, *[1] * (x.ndim - 1)))
    return logits.detach().to(kept), found.detach().to(kept), torch.stack(gradients, 1)


def check_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError("expected a call outside of torch.inference_mode(), in which nothing has a gradient")


def without_vanished(back: Tensor, slope: Tensor, looking: bool = True) -> Tensor:
    """The images' gradients, NaN for those that are zero everywhere, though that of the logits, `slope`, is not."""
    flat = back.flatten(1)
    zero = (flat[:, :FEW] == 0).all(1)  # most gradients are told from zero by a few pixels
    if looking and not zero.any():
        return back
    vanished = zero & (flat == 0).all(1) & (slope != 0).any(1)
    return torch.where(vanished.reshape(-1, *[1] * (back.ndim - 1)), torch.nan, back)
