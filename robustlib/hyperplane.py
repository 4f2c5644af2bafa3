"""The smallest step from a point of the box onto a hyperplane, within the box, in each norm."""

import torch
from torch import Tensor

from robustlib.arguments import Norm
from robustlib.norms import looks, unknown

PASSES = 50  # Newton's method below mostly needs three to eight
# Where a look at whether all rows are there would be a wait for the device, as many as the hardest of 6,000 random
# problems needed, and two more; those not needed change nothing.
BLIND_PASSES = 24


def to_plane(point: Tensor, normal: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """The step d of least size with value + <normal, d> = 0 and point + d in [0, 1]; as near as the box lets it.

    point, normal: shape (B, ...).  value: that of the plane's function at the point, shape (B,).  Returns d.
    """
    w, z = normal.flatten(1), point.flatten(1)
    direction = -(w * value[:, None].sign()).sign()
    room = (direction.clamp_min(0) - z).abs_()  # 1 - z where it goes up, else z: `where` takes a CPU ten times as long
    steepness, need = w.abs(), value.abs()[:, None]
    match norm:
        case "Linf":
            step = fill_evenly(steepness, None, room, need)
        case "L2":
            step = fill_evenly(steepness, steepness, room, need)
        case "L1":
            step = fill_steepest(steepness, room, need)
        case _:
            raise unknown(norm)
    return (direction * step).reshape(point.shape)


def fill_evenly(steepness: Tensor, speed: Tensor | None, room: Tensor, need: Tensor) -> Tensor:
    """min(t speed, room) with the t at which its product with the steepness is `need`; a speed of 1 where it is None.

    That product grows with t along a concave line of straight pieces, so Newton's method from t = 0 never overshoots
    and ends at the exact piece. A row that is there stays as it is: no row depends on the others.
    """
    rate, until = steepness, room
    if speed is not None:
        rate = steepness * speed
        until = (room / speed.clamp_min(torch.finfo(speed.dtype).tiny)).mul_(speed.sign())  # 0 where the speed is
    t, work = torch.zeros_like(need), torch.empty_like(rate)
    looking = looks(need)
    for _ in range(PASSES if looking else BLIND_PASSES):
        short = need - torch.minimum(until, t, out=work).mul_(rate).sum(1, keepdim=True)
        slope = torch.gt(until, t, out=work).mul_(rate).sum(1, keepdim=True)
        going = (short > 1e-6 * need) & (slope > 0)
        if looking and not going.any():
            break
        t = torch.where(going, t + short / slope.clamp_min(torch.finfo(slope.dtype).tiny), t)
    return (t if speed is None else t * speed).minimum(room)


def fill_steepest(steepness: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The steepest coordinates to their full room, one after the other, until their product with the steepness is
    `need`.
    """
    steep, order = steepness.sort(dim=1, descending=True, stable=True)
    space = room.gather(1, order)
    gain = steep.double() * space  # in float64: what is left over is the difference of two large sums
    before = gain.cumsum(1) - gain
    taken = ((need - before) / steep.clamp_min(torch.finfo(steep.dtype).tiny)).clamp_min(0).minimum(space)
    return torch.zeros_like(room).scatter(1, order, torch.where(steep > 0, taken, 0).to(room))
