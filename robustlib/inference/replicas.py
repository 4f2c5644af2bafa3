"""The replicas of a model: as it judges, and as attacks search on it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace

from robustlib.inference.batched_model import Count
from robustlib.inference.replica import Replica


@dataclass(frozen=True)
class Replicas:
    """A model as it judges (`exact`, the original in float32), and as attacks search on it.

    search: the quickest copy.  fine: a copy in arithmetic fine enough to measure smallest distances with; often the
    same.  surrogate: another network, on which `transfer` makes its images.
    played: recorded steps of each replica within `playing`, by its id.
    """

    exact: Replica
    search: Replica
    fine: Replica
    surrogate: Replica | None = None
    played: Counter[int] = field(default_factory=Counter, compare=False)

    @property
    def every(self) -> tuple[Replica, ...]:
        """All of them; some may be the same."""
        return (self.exact, self.search, self.fine, *([] if self.surrogate is None else [self.surrogate]))

    def for_radius(self, eps: float | None) -> Replica:
        """The copy to search a ball of this radius with, or, with None, for the nearest misclassified image."""
        return self.fine if eps is None else self.search

    def for_evaluation(self) -> "Replicas":
        """The same replicas with a count of recorded steps of their own."""
        return replace(self, played=Counter())

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Count the recorded steps of the block as this evaluation's: others of the same model may run between two."""
        replicas = {id(replica): replica for replica in self.every}
        before = {key: replica.recordings.played for key, replica in replicas.items()}
        try:
            yield
        finally:
            for key, replica in replicas.items():
                self.played[key] += replica.recordings.played - before[key]

    def mode(self, eps: float | None) -> str:
        """In which form a ball of this radius was searched, and how steps were taken within `playing`, in words."""
        replica = self.for_radius(eps)
        return replica.told(recorded=self.played[id(replica)] > 0)

    @property
    def passes(self) -> Count:
        """Examples passed forward and back so far, by all."""
        return Count(*(sum(each) for each in zip(*(astuple(count) for count in self.counts), strict=True)))

    @property
    def counts(self) -> list[Count]:
        """Where they count, in a fixed order; those that count together have one."""
        return list({id(replica.count): replica.count for replica in self.every}.values())

    def add_counts_to(self, other: "Replicas") -> None:
        """Count the passes so far as the other's."""
        # Those that count together are empty at their second turn.
        for mine, theirs in zip(self.every, other.every, strict=True):
            mine.count.move_to(theirs.count)
