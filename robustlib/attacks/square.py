"""Square: random search over squares, by the logits alone."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from robustlib.draws import Draws, default_draws
from robustlib.engine import Engine, Net
from robustlib.losses import confirmed, margin
from robustlib.norms import Norm, per_example, project_in_box, size

# After how many queries the share of the image that a square covers is halved (again).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
BLOCK = 50  # queries whose random numbers are drawn at once
DOUBT = 1 / 32  # of its drift: nearer than that, half precision is not asked which of two images has the larger margin
TINY = 1e-12


@dataclass
class Run:
    place: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    value: Tensor  # the margin: above 0 where misclassified
    rough: Tensor  # the same in half precision, where the search copy has no better
    draws: Draws
    numbers: Tensor  # random numbers of the next BLOCK queries, (B, BLOCK, channels + 2)

    def __getitem__(self, chosen: Tensor) -> "Run":
        return Run(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    queries: int = 5000,
    share: float = 0.8,
    draws: Draws | None = None,
) -> Tensor:
    """Square attack, Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049; L1: https://arxiv.org/abs/2103.01208.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).  eps: in units of x.
    queries: candidates an image, each a forward pass unless it changes nothing.
    share: of the image that the first squares cover; it is halved after 10, 50, 200, 500, 1000, 2000, ... queries.
    An image is done with as soon as it is misclassified.
    Returns x_adv, shaped like x, in the box and the eps-ball.
    """
    draws = default_draws(x, draws)
    propose = propose_square if norm == "Linf" else propose_bump
    x_adv = stripes(x, eps, draws) if norm == "Linf" else tiles(x, eps, norm, draws)
    fine = finer(model)
    rough = margin(model(x_adv), y)
    value = margin(fine(x_adv), y) if fine is not None else rough
    run = Run(torch.arange(len(x), device=x.device), x, y, x_adv, value, rough, draws, x.new_empty(len(x), 0))
    fell = confirmed(model, x_adv, y, value > 0)
    found = x_adv.clone()
    for query in range(1, queries):
        if fell.any():
            found[run.place[fell]] = run.x_adv[fell]
            run = run[~fell]
        if len(run.place) == 0:
            break
        if query % BLOCK == 1:
            run.numbers = run.draws.uniform((BLOCK, x.shape[1] + 2), f"square/{query // BLOCK}").to(x)
        side = side_length(x, share, query, norm)
        candidate = propose(run, side, eps, norm, query)
        # Some squares change nothing, as where the image lies on that side of the ball already: they need no pass.
        new = (candidate != run.x_adv).flatten(1).any(1).nonzero().squeeze(1)
        better = climbs(model, fine, run, candidate, new)
        run.x_adv[better] = candidate[better]
        fell = confirmed(model, run.x_adv, run.y, better & (run.value > 0))
    found[run.place] = run.x_adv
    return found


def finer(model: nn.Module) -> Net | None:
    """What tells small steps apart where the model, in bfloat16, is too rough to."""
    return None if not isinstance(model, Engine) or model.judge == model.forward else model.judge


def climbs(model: nn.Module, fine: Net | None, run: Run, candidate: Tensor, rows: Tensor) -> Tensor:
    """Which of the rows' candidates have a larger margin, shape (B,); updates the margins of those."""
    better = torch.zeros_like(run.y, dtype=torch.bool)
    if len(rows) == 0:
        return better
    rough = margin(model(candidate[rows]), run.y[rows])
    value = rough
    if fine is not None:
        assert isinstance(model, Engine)
        near = rough > run.rough[rows] - DOUBT * model.drift
        rows, rough = rows[near], rough[near]
        value = margin(fine(candidate[rows]), run.y[rows])
    up = value > run.value[rows]
    rows = rows[up]
    better[rows] = True
    run.value, run.rough = run.value.index_copy(0, rows, value[up]), run.rough.index_copy(0, rows, rough[up])
    return better


def side_length(x: Tensor, share: float, query: int, norm: Norm) -> int:
    """Pixels along a side; odd, and three at least, for the bumps of L2 and L1."""
    height, width = x.shape[2:]
    share /= 2 ** sum(query > after for after in HALVINGS)
    side = max(round(math.sqrt(share * height * width)), 1)
    if norm != "Linf":
        side = max(side, 3) + (max(side, 3) % 2 == 0)
    return min(side, height, width)


def signs(draws: Draws, shape: tuple[int, ...], stream: str, like: Tensor) -> Tensor:
    return torch.where(draws.uniform(shape, stream) < 0.5, -1.0, 1.0).to(like)


def windows(x: Tensor, side: int, draws: Draws, stream: str) -> Tensor:
    """Which pixels each example's random window covers, shape (B, 1, H, W)."""
    height, width = x.shape[2:]
    corner = draws.uniform((2,), stream)
    down, right = (
        (corner[:, axis] * (extent - side + 1)).long().clamp_max(extent - side)
        for axis, extent in enumerate((height, width))
    )
    rows = torch.arange(height, device=x.device) - down[:, None]
    columns = torch.arange(width, device=x.device) - right[:, None]
    rows, columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return rows[:, None, :, None] & columns[:, None, None, :]


def stripes(x: Tensor, eps: float, draws: Draws) -> Tensor:
    """The first guess in Linf: every column of every channel up or down by eps."""
    return (x + eps * signs(draws, (x.shape[1], 1, x.shape[3]), "square/stripes", x)).clamp(0, 1)


def propose_square(run: Run, side: int, eps: float, norm: Norm, query: int) -> Tensor:
    """A square of each channel moved to one side of the ball."""
    n, channels, height, width = run.x.shape
    numbers = run.numbers[:, (query - 1) % BLOCK]
    down, right = (
        (numbers[:, axis] * (extent - side + 1)).long().clamp_max(extent - side)
        for axis, extent in enumerate((height, width))
    )
    steps = torch.arange(side, device=run.x.device)
    pixels = ((down[:, None] + steps) * width)[:, :, None] + (right[:, None] + steps)[:, None, :]
    pixels = pixels.reshape(n, 1, side * side).expand(n, channels, side * side)
    original = run.x.flatten(2).gather(2, pixels)
    move = torch.where(numbers[:, 2:] < 0.5, -2 * eps, 2 * eps)[:, :, None]
    moved = run.x_adv.flatten(2).gather(2, pixels) + move
    moved = moved.maximum(original - eps).minimum(original + eps).clamp(0, 1)
    return run.x_adv.flatten(2).scatter(2, pixels, moved).reshape(run.x.shape)


def bump(side: int, like: Tensor) -> Tensor:
    """Two opposite heaps of pixels, of size 1 in L2, shape (side, side): the pattern of the L2 and L1 attacks.

    Each heap adds rectangles that grow from its centre, the k-th of height 1 / k^2.
    """
    upper = side // 2
    return torch.cat([heap(upper, side, like), -heap(side - upper, side, like)]) / math.sqrt(2)


def heap(height: int, width: int, like: Tensor) -> Tensor:
    found = like.new_zeros(height, width)
    top, left = height // 2, width // 2
    for k in range(max(height, width) // 2 + 1):
        found[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
    return found / found.square().sum().sqrt().clamp_min(TINY)


def tiles(x: Tensor, eps: float, norm: Norm, draws: Draws) -> Tensor:
    """The first guess in L2 and L1: a grid of five by five bumps with random signs."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    pattern = bump(side, x) if side > 1 else x.new_ones(1, 1)
    down, across = height // side, width // side
    sides = signs(draws, (channels, down, across), "square/tiles", x)
    delta = torch.zeros_like(x)
    tiled = sides.repeat_interleave(side, 2).repeat_interleave(side, 3) * pattern.repeat(down, across)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = tiled
    return x + fit(x, delta, eps, norm)


def fit(x: Tensor, delta: Tensor, eps: float, norm: Norm) -> Tensor:
    """The perturbation scaled up to the whole budget, then brought into the ball and the box."""
    used = size(delta, norm)
    scaled = delta * per_example((eps / used.clamp_min(TINY)).clamp_min(1 if norm == "L1" else 0), delta)
    return project_in_box(x, scaled, eps, norm)


def propose_bump(run: Run, side: int, eps: float, norm: Norm, query: int) -> Tensor:
    """The budget of one random window, and what is unused, moved into a bump in another."""
    draws = run.draws.restart(query)
    x, delta = run.x, run.x_adv - run.x
    channels = x.shape[1]
    into, away = (windows(x, side, draws, f"square/{name}") for name in ("into", "from"))
    pattern = place_bump(x, into, side, draws)
    inside = delta * into
    pattern = pattern + inside / per_channel(inside, norm).clamp_min(TINY)
    pattern = pattern / per_channel(pattern, norm).clamp_min(TINY)
    both = per_channel(delta * (into | away), norm)
    used = per_example(size(delta, norm), x)
    if norm == "L2":
        strength = ((eps**2 - used**2).clamp_min(0) / channels + both**2).sqrt()
    else:
        strength = (eps - used).clamp_min(0) / channels + both
    moved = torch.where(into, pattern * strength, torch.where(away, 0, delta))
    return (x + fit(x, moved, eps, norm)).clamp(0, 1)


def per_channel(delta: Tensor, norm: Norm) -> Tensor:
    """Size of each channel of each example, (B, C, 1, 1)."""
    if norm == "L1":
        return delta.abs().sum((2, 3), keepdim=True)
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def place_bump(x: Tensor, into: Tensor, side: int, draws: Draws) -> Tensor:
    """A bump in the window of each example, upright or lying, with a random sign a channel."""
    shape = bump(side, x) if side > 1 else x.new_ones(1, 1)
    lying = draws.uniform((1, 1), "square/lying") < 0.5
    shapes = torch.where(lying, shape.T, shape)  # (B, side, side)
    placed = torch.zeros(len(x), *x.shape[2:], device=x.device, dtype=x.dtype)
    placed.masked_scatter_(into[:, 0], shapes)
    return placed[:, None] * signs(draws, (x.shape[1], 1, 1), "square/sign", x)
