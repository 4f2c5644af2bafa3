"""SPSA and NES: gradient steps whose gradient is estimated from scores at random neighbours."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, check_queries
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.input_checks import checked
from robustlib.losses import LossName, find_loss, misclassified
from robustlib.norms import added, ascent_step, draw_in_ball, per_example, project_in_box
from robustlib.rng import Draws, default_draws

AT_ONCE = 2**22  # numbers of candidate images held at a time
Directions = Callable[[Draws, tuple[int, ...], str], Tensor]


def signs(draws: Draws, shape: tuple[int, ...], stream: str) -> Tensor:
    """Entries of -1 and 1, as SPSA asks for: it divides by them."""
    return torch.where(draws.uniform(shape, stream) < 0.5, -1.0, 1.0)


def normals(draws: Draws, shape: tuple[int, ...], stream: str) -> Tensor:
    return draws.normal(shape, stream)


@checked
def spsa(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    queries: int = 5000,
    samples: int = 64,
    radius: float = 0.01,
    step_size: float | None = None,
    loss: LossName = "margin",
    draws: Draws | None = None,
    spent: Tensor | None = None,
) -> Tensor:
    """SPSA, Uesato et al. 2018, https://arxiv.org/abs/1802.05666; simultaneous perturbation after Spall 1992.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).  eps, radius: in units of x.
    queries: images shown to the model for each of x, at most.  samples: of them a step, in antithetic pairs.
    radius: how far away, in each pixel, scores are asked for.  step_size: eps / 5 where none is given.
    spent: filled in with the queries of each image, int64, shape (B,).
    An image is done with as soon as it is misclassified.
    Returns x_adv, shaped like x, in the box and the eps-ball.
    """
    given = (queries, samples, radius, step_size, loss, draws, spent)
    return climb_estimates(model, x, y, norm, eps, "spsa", signs, *given)


@checked
def nes(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    queries: int = 5000,
    samples: int = 50,
    radius: float = 0.01,
    step_size: float | None = None,
    loss: LossName = "margin",
    draws: Draws | None = None,
    spent: Tensor | None = None,
) -> Tensor:
    """Natural evolution strategies, Ilyas et al. 2018, https://arxiv.org/abs/1804.08598.

    SPSA with normal directions. Shapes, units and return value as for `spsa`.
    """
    given = (queries, samples, radius, step_size, loss, draws, spent)
    return climb_estimates(model, x, y, norm, eps, "nes", normals, *given)


def first_step(params: Mapping[str, Any]) -> int:
    """Queries of the start, of the samples of one step, and of the image that they lead to."""
    return 2 + 2 * max(params["samples"] // 2, 1)


@torch.no_grad()
def climb_estimates(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: Norm,
    eps: float,
    stream: str,
    directions: Directions,
    queries: int,
    samples: int,
    radius: float,
    step_size: float | None,
    loss: str,
    draws: Draws | None,
    spent: Tensor | None,
) -> Tensor:
    """Steps along estimated gradients; each costs its samples, and a query that says whether it was the last."""
    check_queries(stream, queries, first_step({"samples": samples}))
    oracle, draws = as_oracle(model), default_draws(x, draws)
    objective, pairs = find_loss(loss), max(samples // 2, 1)
    step = eps / 5 if step_size is None else step_size
    used = torch.ones_like(y)
    x_adv = added(x, draw_in_ball(x, eps, norm, draws, f"{stream}/start"), norm).clamp(0, 1)
    found, live = x_adv.clone(), torch.arange(len(x), device=x.device)
    turn = 0
    while len(live):
        fell = oracle.is_done(x_adv, y, misclassified(oracle.logits(x_adv), y))
        done = fell | (used[live] + 2 * pairs + 1 > queries)
        found[live[done]] = x_adv[done]
        live, x, y, x_adv, draws = live[~done], x[~done], y[~done], x_adv[~done], draws[~done]
        if len(live) == 0:
            break
        slope = estimate(oracle, x_adv, y, objective, draws, f"{stream}/{turn}", directions, pairs, radius)
        x_adv = x_adv + ascent_step(x_adv, slope, step, norm)
        x_adv = (x + project_in_box(x, x_adv - x, eps, norm)).clamp(0, 1)
        used[live] += 2 * pairs + 1
        turn += 1
    if spent is not None:
        spent.copy_(used)
    return found


def estimate(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    objective: Callable[..., Tensor],
    draws: Draws,
    stream: str,
    directions: Directions,
    pairs: int,
    radius: float,
) -> Tensor:
    """The mean over pairs of their difference times their direction, shaped like x."""
    some = max(1, AT_ONCE // (2 * pairs * x[0].numel()))
    slopes = []
    for rows in torch.arange(len(x), device=x.device).split(some):
        u = directions(draws[rows], (pairs, *x.shape[1:]), stream).to(x)  # (b, pairs, C, H, W)
        centre = x[rows, None]
        asked = torch.cat([centre + radius * u, centre - radius * u], 1).clamp(0, 1)
        logits = oracle.logits(asked.flatten(0, 1))
        values = objective(logits, y[rows].repeat_interleave(2 * pairs)).reshape(len(rows), -1)
        gained = (values[:, :pairs] - values[:, pairs:]).reshape(-1, 1)
        slopes.append((per_example(gained.flatten(), u.flatten(0, 1)) * u.flatten(0, 1)).reshape(u.shape).mean(1))
    return torch.cat(slopes)
