"""A copy of a model that attacks search on: what it says itself, and what it leaves to the model that judges."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from robustlib.inference.batched_model import BatchedModel, Count
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.cudnn_tuning import tuned
from robustlib.inference.fixed_oracle import Asked, FixedOracle
from robustlib.inference.gradients import Net, Values
from robustlib.inference.oracle import Margins, Oracle
from robustlib.inference.recorded_steps import SHORT, Recorder, Recordings
from robustlib.losses import margin, misclassified

DOUBT = 1 / 32  # of its drift: nearer than that, half precision is not asked which of two images has the larger margin


@dataclass
class Unseen:
    """Batch sizes at which nobody has compared a copy with its model so far.

    compare: says what is wrong with the copy at a size; nothing where that is empty.  given_up: what was, by size.
    """

    sizes: set[int]
    compare: "Callable[[Replica, int], str]"
    given_up: dict[int, str] = field(default_factory=dict)

    def words(self) -> str:
        """For the mode."""
        return "".join(f", no batches of {size}: {fault}" for size, fault in self.given_up.items())


class Replica(BatchedModel):
    """A copy of a model, or the model itself, at fixed batch sizes. It is made once: see `but`.

    form: what `net` is, in words.  drift: how far `net`'s logits may lie from those of the model that it stands for; 0
    where it is that model.
    judge: what has the last word on whether an image is misclassified, None where `net` needs no other.
    in_float32: of one in half precision the copy in float32, which takes the last steps where rounding hides them.
    in_half: of one in float32 the copy in half precision, for gradients that go with its own logits.
    recorded: `net` replays CUDA graphs, and attacks' steps on it are recorded.  tuned: cuDNN may measure which
    algorithm is the fastest for each batch size.  unseen: batch sizes at which it is compared at their first use; None
    where there are none.  The others: see `BatchedModel`.
    """

    def __init__(
        self,
        net: Net,
        *,
        mode: str = "float32",
        drift: float = 0.0,
        judge: "Replica | None" = None,
        in_float32: "Replica | None" = None,
        in_half: "Replica | None" = None,
        recorded: bool = False,
        tuned: bool = False,
        unseen: Unseen | None = None,
        **batched: Any,
    ):
        super().__init__(net, **batched)
        self.form = mode
        self.drift = drift
        self.copies = (judge, in_float32, in_half)  # in a tuple, so that they are no parts of this module
        self.recorded = recorded
        self.tuned = tuned
        self.unseen = unseen
        self.recordings = Recordings()

    @property
    def mode(self) -> str:
        """What `net` is, and how the steps on it were taken since `recordings.forget()`, in words."""
        return self.told(recorded=self.recordings.played > 0)

    def told(self, *, recorded: bool) -> str:
        """The same. recorded: whether steps were taken from recordings."""
        fine = "" if self.in_float32 is None else self.in_float32.recordings.refused
        unseen = "" if self.unseen is None else self.unseen.words()
        steps = self.recordings.words(recorded=recorded) + (f", steps in float32 not recorded: {fine}" if fine else "")
        return self.form + unseen + steps

    def but(self, **changed: Any) -> "Replica":
        """The same but for what is given. Both call one net, count together unless a count is given, and learn together
        what memory holds unless sizes are.
        """
        same = self.settings()
        if "sizes" in changed:
            del same["room"]
        return Replica(**same | changed)

    def settings(self) -> dict[str, Any]:
        """What makes a replica that is the same."""
        how = ("dtype", "memory_format", "precision", "spare", "count", "room")
        names = ("net", "drift", "judge", "in_float32", "in_half", "recorded", "tuned", "unseen", *how)
        return {name: getattr(self, name) for name in names} | {"mode": self.form}

    @property
    def judge(self) -> "Replica | None":
        return self.copies[0]

    @property
    def in_float32(self) -> "Replica | None":
        return self.copies[1]

    @property
    def in_half(self) -> "Replica | None":
        return self.copies[2]

    @property
    def mixes_steps(self) -> bool:
        """Recorded steps are taken by all of a block; float16's own images astray are attacked anew, each by itself."""
        return bool(self.sizes) and not self.recorded and self.precision != torch.float16

    def take_steps(
        self, search: Any, run: Any, place: Tensor, phases: Sequence[Any], found: tuple[Tensor, ...]
    ) -> tuple[Any, Tensor]:
        """Recorded, where passes are; see `recorded_steps.py`."""
        if not self.recorded or not self.sizes or self.recordings.refused or len(phases) < SHORT:
            return search.walk(self, run, place, phases, found)
        quick = self if self.in_half is None else self.in_half
        finer = None if self.finer is None else self.finer.asked()
        fixed = partial(FixedOracle, self.asked(), quick.asked(), finer, DOUBT * self.drift)
        if not (sizes := self.agreed_sizes(len(place), quick)):
            return search.walk(self, run, place, phases, found)
        recorder = Recorder(self, fixed, self.recordings, sizes, search, phases, found)
        return recorder.walk(run, place)

    def gives_up(self, size: int) -> bool:
        """At its first use, what is not seen yet is compared; what does not agree there is never used."""
        if self.unseen is None or size not in self.unseen.sizes:
            return False
        self.unseen.sizes.discard(size)  # the comparison uses it
        if fault := self.unseen.compare(self.but(count=Count()), size):
            self.unseen.given_up[size] = fault
            self.room.sizes = tuple(each for each in self.sizes if each != size)
            self.forget(self.sizes[-1])
        return size not in self.sizes  # nor where memory did not hold it

    def see_all(self) -> None:
        """Compare at all batch sizes now."""
        for size in self.sizes:
            self.gives_up(size)

    def agreed_sizes(self, n: int, quick: "Replica") -> tuple[int, ...]:
        """The batch sizes for recorded steps of up to n rows, which ask this copy and the quick one without a look."""
        while any(self.gives_up(size) for size in self.sizes if size <= self.size_of(n)):
            pass
        for size in self.sizes:
            if size <= self.size_of(n):
                quick.gives_up(size)
        faults = () if quick.unseen is None else quick.unseen.given_up
        return tuple(size for size in self.sizes if size not in faults)

    def forget(self, beyond: int) -> None:
        if self.recorded:
            cast(Graphs, self.net).forget(beyond)
            self.recordings.forget_blocks(beyond)

    def asked(self) -> Asked:
        """The network itself, without the graphs of its passes."""
        net = cast(Graphs, self.net).net if self.recorded else self.net
        return Asked(net, self.dtype, self.memory_format, self.precision, self.spare is not None, self.count)

    @contextmanager
    def tuned_arithmetic(self) -> Iterator[None]:
        with tuned(), super().arithmetic():
            yield

    def arithmetic(self) -> AbstractContextManager[None]:
        return self.tuned_arithmetic() if self.tuned and self.sizes else super().arithmetic()

    def gradients(self, x: Tensor, values: Values, *rows: Tensor) -> Tensor:
        quick = self if self.in_half is None else self.in_half
        return quick.values_and_grads(x, values, *rows)[2]

    @torch.no_grad()
    def is_adversarial(self, x: Tensor, y: Tensor, claimed: Tensor | None = None) -> Tensor:
        """Its own word needs that of its judge, by more than the judge may differ from the model that all this is
        about: so that an attack goes on where only the copy is fooled.
        """
        if self.judge is None:
            return super().is_adversarial(x, y, claimed)
        if claimed is None:
            return self.judge.misclassifies(x, y)
        if not claimed.any():
            return claimed
        rows, agreed = claimed.nonzero().squeeze(1), claimed.clone()
        agreed[rows] = self.judge.misclassifies(x[rows], y[rows])
        return agreed

    def misclassifies(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images it misclassifies by more than its drift, shape (B,)."""
        logits = self(x)
        return misclassified(logits, y) & (margin(logits, y) >= self.drift)

    def in_doubt(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.drift == 0:
            return misclassified(logits, y) | logits.isnan().any(1)
        return ~(margin(logits, y) < -self.drift)  # NaN too

    @torch.no_grad()
    def margins(self, x: Tensor, y: Tensor) -> Margins:
        rough = margin(self(x), y)
        return Margins(rough if self.finer is None else margin(self.finer(x), y), rough)

    @torch.no_grad()
    def larger_margins(self, x: Tensor, y: Tensor, than: Margins) -> tuple[Tensor, Margins]:
        """In half precision those alone are asked of the judge whose margin is not surely smaller."""
        if self.finer is None:
            return super().larger_margins(x, y, than)
        rough = margin(self(x), y)
        near = (rough > than.rough - DOUBT * self.drift).nonzero().squeeze(1)
        value = margin(self.finer(x[near]), y[near])
        larger = value > than.value[near]
        return near[larger], Margins(value[larger], rough[near[larger]])

    @property
    def finer(self) -> "Replica | None":
        """The judge, where it tells small differences apart that `net` is too rough for."""
        return None if self.judge is None or self.judge.net is self.net else self.judge

    def surely_right(self, x: Tensor, y: Tensor, logits: Tensor | None = None) -> Tensor:
        """One in float16 is not asked: beyond its range it may give finite logits of something else."""
        asked = self.in_float32 if self.precision == torch.float16 and self.in_float32 is not None else self
        return ~asked.in_doubt(asked(x) if logits is None else logits, y)

    def on_edge(self, x_adv: Tensor, y: Tensor) -> list[tuple[Oracle, Tensor]]:
        return [] if self.in_float32 is None else where(self.in_float32, self.in_doubt(self(x_adv), y))

    def misjudged(self, x: Tensor, y: Tensor, claimed: Tensor) -> list[tuple[Oracle, Tensor]]:
        if self.in_float32 is None:
            return []
        return where(self.in_float32, claimed & ~self.is_adversarial(x, y, claimed))

    @torch.no_grad()
    def astray(self, x_adv: Tensor) -> tuple[list[tuple[Oracle, Tensor]], Tensor | None]:
        """Beyond float16's range a norm is infinite, and what is divided by it zero: a gradient and logits that are
        finite, and not the model's. The attack was one on another function.
        """
        if self.in_float32 is None or self.precision != torch.float16:
            return [], None
        logits = self.in_float32(x_adv)
        apart = (self(x_adv) - logits).abs().amax(1)
        return where(self.in_float32, ~(apart <= self.drift + self.in_float32.drift)), logits


def where(oracle: Oracle, rows: Tensor) -> list[tuple[Oracle, Tensor]]:
    """The places of the rows that are true, with the oracle, if there are any."""
    return [(oracle, rows.nonzero().squeeze(1))] if rows.any() else []
