"""An attack session: one attack after the other on the same images, each scored on the model as given."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.inference.predict import predict
from robustlib.outcome import check_budget, score
from robustlib.rng import Draws

PROBE = 32  # standing images on which a costly attack shows whether it is worth trying on all
CHOOSING = 32  # draws by which the better of two images is chosen, where the model is randomised
CHANCE = 0.3  # a share of so many draws falls by more than this by chance at one image in a hundred
ALIVE = 0.02  # share of draws below which an image of a randomised model is not attacked again
Strike = Callable[[Tensor, Tensor, Draws], Tensor]  # images, classes, draws -> attacked images


@dataclass(frozen=True)
class Trial:
    """An attack that was tried. attack: in words.  remedy: which of robustlib.audit.diagnosis.REMEDIES it belongs to.

    attacked: images it was tried on.  broke: how many of them it changed for the worse.  robust_accuracy: after it.
    """

    attack: str
    remedy: str
    attacked: int
    broke: int
    robust_accuracy: float
    seconds: float


class Bout:
    """The images, the best attacked image so far of each, and the share of draws in which it is classified correctly.

    judge: the model as given, in eval mode.  randomised: it changes its answer from pass to pass.
    """

    def __init__(
        self, judge: nn.Module, x: Tensor, y: Tensor, draws: Draws, *, norm: Norm, eps: float, randomised: bool
    ):
        self.judge, self.x, self.y, self.draws = judge, x, y, draws
        self.norm: Norm = norm
        self.eps, self.randomised = eps, randomised
        self.x_adv = x.clone()
        self.correct = self.share(x, y)
        self.by = ["clean" if right <= 0.5 else "" for right in self.correct.tolist()]
        self.trials: list[Trial] = []

    def share(self, x: Tensor, y: Tensor, draws: int = CHOOSING) -> Tensor:
        """The share of draws that classify each image correctly: 0 or 1 for a fixed model."""
        if not self.randomised:
            return (predict(self.judge, x) == y).float()
        return score(self.judge, x, y, draws).correct

    @property
    def standing(self) -> Tensor:
        return (self.correct > (ALIVE if self.randomised else 0)).nonzero().flatten()

    def attempt(self, attack: str, remedy: str, strike: Strike, *, probe: bool = False) -> Trial | None:
        """Try an attack on what stands; with `probe`, on all of it only where it shows on the first. None: none stands.

        Raises RuntimeError where the attack leaves its budget.
        """
        start, rows = time.perf_counter(), self.standing
        if len(rows) == 0:
            return None
        some = rows[:PROBE] if probe else rows
        broke = self.strike(some, attack, strike)
        if probe and broke and len(rows) > PROBE:
            broke += self.strike(rows[PROBE:], attack, strike)
            some = rows
        seconds = time.perf_counter() - start
        self.trials.append(Trial(attack, remedy, len(some), broke, self.correct.mean().item(), seconds))
        return self.trials[-1]

    def strike(self, rows: Tensor, attack: str, strike: Strike) -> int:
        x, y = self.x[rows], self.y[rows]
        found = strike(x, y, self.draws[rows]).to(x)
        check_budget(found, x, self.norm, self.eps, [attack])
        # Of a randomised model both images are scored anew, and then the one that was chosen: a share by which an image
        # was chosen is a lucky one, and would make the model look weaker attack by attack.
        share, before = self.share(found, y), self.share(self.x_adv[rows], y) if self.randomised else self.correct[rows]
        better = share < before
        taken = rows[better]
        self.x_adv[taken] = found[better]
        self.correct[rows] = self.share(self.x_adv[rows], y) if self.randomised else share.minimum(before)
        for place in taken.tolist():
            self.by[place] = attack
        return int(self.fell(before, share).sum())

    def fell(self, before: Tensor, after: Tensor) -> Tensor:
        """Which images' shares fell from `before` to `after`, by more than chance."""
        return before - after > (CHANCE if self.randomised else 0)

    def lost(self, before: Tensor) -> Tensor:
        """Places of the images that stood when their shares were `before` and are broken now."""
        return ((before > 0.5) & (self.correct <= 0.5) & self.fell(before, self.correct)).nonzero().flatten()

    def chance(self, share: Tensor) -> float:
        """How far two means of such shares, on draws of their own, differ at most by chance."""
        if not self.randomised:
            return 0.0
        variance = (share * (1 - share)).mean().item() / (len(share) * CHOOSING)
        return 3 * math.sqrt(2 * variance)
