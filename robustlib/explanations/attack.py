"""The attack on an explanation: an image in the ball whose class stays and whose explanation does not."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustlib.arguments import Norm
from robustlib.explanations.measures import pixel_map, top, top_intersection
from robustlib.input_checks import checked
from robustlib.losses import margin, misclassified, pick
from robustlib.model_calls import ask
from robustlib.norms import added, ascent_step, draw_in_ball, project_in_box
from robustlib.rng import Draws, default_draws

RELUS = (F.relu, torch.relu, Tensor.relu)
RELUS_IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)
KEPT = 0.1  # of the logits: the lead that the class is to keep while the search goes on
TINY = 1e-12

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, target) -> attribution


class SmoothReLU(TorchFunctionMode):
    """Within it every ReLU is a softplus, which has a second derivative: Dombrowski et al. 2019,
    https://arxiv.org/abs/1906.07983. No copy of the model is made.

    sharpness: the softplus' beta; the larger, the nearer to a ReLU.
    """

    def __init__(self, sharpness: float):
        super().__init__()
        self.sharpness = sharpness

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            return F.softplus(args[0], self.sharpness)
        if func in RELUS_IN_PLACE:
            return args[0].copy_(F.softplus(args[0].clone(), self.sharpness))
        return func(*args, **(kwargs or {}))


@checked
def explanation_attack(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    explain: Explain,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    steps: int = 40,
    step_size: float | None = None,
    share: float = 0.1,
    sharpness: float = 20.0,
    looks: int = 4,
    surrogate: Literal["gradient", "input-x-gradient"] = "gradient",
    draws: Draws | None = None,
) -> Tensor:
    """Move the top pixels of an explanation elsewhere and keep the class, after Ghorbani et al. 2019,
    https://arxiv.org/abs/1710.10547.

    Projected gradient descent on the share that the clean explanation's top pixels have in a gradient map of the model
    with softplus in place of ReLU. What counts is judged with the model as given: `looks` times the explanation itself
    is made, and of the images that keep the class the one with the fewest top pixels in common is returned.

    x: images in [0, 1], shape (B, C, H, W).  target: the class that is explained and kept, shape (B,).
    explain: the explanation, (model, x, target) -> attribution.  eps, step_size: in units of x; the step is 2.5 eps /
    steps where none is given.  share: of the pixels that are top.  sharpness: of the softplus.
    surrogate: the map that is descended: the gradient, or the image times the gradient.
    Returns x_adv, shaped like x, in the box and the eps-ball; x itself where nothing that keeps the class
    lowers it, as with a linear model's gradient.
    """
    clean = explain(model, x, target)
    wanted = top(clean, share)
    size = 2.5 * eps / steps if step_size is None else step_size
    start = draw_in_ball(x, eps, norm, default_draws(x, draws), "explanation-attack/start")
    x_adv = added(x, start, norm).clamp(0, 1)
    best, lowest = x.clone(), torch.ones(len(x), dtype=torch.float64, device=x.device)
    seen = {round(steps * (k + 1) / looks) for k in range(looks)}
    for step in range(1, steps + 1):
        slope = -overlap_gradient(model, x_adv, target, wanted, surrogate, sharpness)
        moved = x_adv + ascent_step(x_adv, slope, size, norm)
        x_adv = (x + project_in_box(x, moved - x, eps, norm)).clamp(0, 1)
        if step in seen:
            with torch.no_grad():
                kept = ~misclassified(ask(model, x_adv), target)
            common = top_intersection(clean, explain(model, x_adv, target), share=share)
            better = kept & (common < lowest)
            best[better], lowest[better] = x_adv[better], common[better]
    return best


@torch.enable_grad()
def overlap_gradient(
    model: nn.Module, x: Tensor, target: Tensor, wanted: Tensor, surrogate: str, sharpness: float
) -> Tensor:
    """The gradient by x of the share that the wanted pixels have in the map, and of what keeps the class."""
    x = x.detach().requires_grad_()
    with SmoothReLU(sharpness):
        logits = ask(model, x)
        (slope,) = torch.autograd.grad(pick(logits, target).sum(), x, create_graph=True)
    found = pixel_map(slope if surrogate == "gradient" else slope * x)
    flat = found.flatten(1)
    overlap = (found * wanted).flatten(1).sum(1) / (flat.sum(1) + TINY)
    # Where the class is about to change, keeping it is worth more than any overlap.
    objective = overlap + F.relu(margin(logits, target) + KEPT)
    (gradient,) = torch.autograd.grad(objective.sum(), x)
    return gradient.detach()
