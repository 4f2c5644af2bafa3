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

PROBE = 32  # robust images on which a costly attack shows whether it is worth trying on all
CHOOSING = 32  # draws by which the better of two images is chosen, where the model is randomised
CHANCE = 0.3  # a share of so many draws falls by more than this by chance at one image in a hundred
ALIVE = 0.02  # share of draws below which an image of a randomised model is not attacked again
RunAttack = Callable[[Tensor, Tensor, Draws], Tensor]  # images, classes, draws -> attacked images


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


class AttackSession:
    """The images, the best attacked image so far of each, and the share of draws in which it is classified correctly.

    model: as given, in eval mode.  randomised: it changes its answer from pass to pass.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, draws: Draws, *, norm: Norm, eps: float, randomised: bool
    ):
        self.model, self.x, self.y, self.draws = model, x, y, draws
        self.norm: Norm = norm
        self.eps, self.randomised = eps, randomised
        self.x_adv = x.clone()
        self.correct = self.share(x, y)
        self.by = ["clean" if right <= 0.5 else "" for right in self.correct.tolist()]
        self.trials: list[Trial] = []

    def share(self, x: Tensor, y: Tensor, draws: int = CHOOSING) -> Tensor:
        """The share of draws that classify each image correctly: 0 or 1 for a fixed model."""
        if not self.randomised:
            return (predict(self.model, x) == y).float()
        return score(self.model, x, y, draws).correct

    @property
    def robust_rows(self) -> Tensor:
        return (self.correct > (ALIVE if self.randomised else 0)).nonzero().flatten()

    def attempt(self, attack: str, remedy: str, run_attack: RunAttack, *, probe: bool = False) -> Trial | None:
        """Try an attack on the robust images; with `probe`, on all only if it succeeds on a few. None: none is left.

        Raises RuntimeError where the attack leaves its budget.
        """
        start, rows = time.perf_counter(), self.robust_rows
        if len(rows) == 0:
            return None
        some = rows[:PROBE] if probe else rows
        broke = self.run_on(some, attack, run_attack)
        if probe and broke and len(rows) > PROBE:
            broke += self.run_on(rows[PROBE:], attack, run_attack)
            some = rows
        seconds = time.perf_counter() - start
        self.trials.append(Trial(attack, remedy, len(some), broke, self.correct.mean().item(), seconds))
        return self.trials[-1]

    def run_on(self, rows: Tensor, attack: str, run_attack: RunAttack) -> int:
        x, y = self.x[rows], self.y[rows]
        found = run_attack(x, y, self.draws[rows]).to(x)
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
        return int(self.dropped(before, share).sum())

    def dropped(self, before: Tensor, after: Tensor) -> Tensor:
        """A mask of the images whose shares fell from `before` to `after` by more than chance."""
        return before - after > (CHANCE if self.randomised else 0)

    def newly_broken(self, before: Tensor) -> Tensor:
        """Indices of the images that were robust at the shares `before` and are misclassified now."""
        return ((before > 0.5) & (self.correct <= 0.5) & self.dropped(before, self.correct)).nonzero().flatten()

    def chance(self, share: Tensor) -> float:
        """How far two means of such shares, on draws of their own, differ at most by chance."""
        if not self.randomised:
            return 0.0
        variance = (share * (1 - share)).mean().item() / (len(share) * CHOOSING)
        return 3 * math.sqrt(2 * variance)
