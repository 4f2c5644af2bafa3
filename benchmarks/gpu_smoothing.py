"""Timings of certificates on a GPU: `python benchmarks/gpu.py smoothing`."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from attacks import Case
from gpu_figures import OURS, Figure, Step
from torch import Tensor

from robustlib.defences.smoothing import certify
from robustlib.evaluation.certified import evaluate_certified
from robustlib.inference.model_modes import evaluating, strict_float32
from robustlib.inference.throughput import calibrate, wait
from robustlib.number_text import counted
from robustlib.rng import Draws

PART = "smoothing"
STRICT = "strict float32"
ABOVE = 0.01  # of sigma: how far a radius may exceed that of strict float32 votes; of 10,000 votes, a few at the edge
FAR = 1e9  # a radius that nothing is certified at, so that every certificate's own radius is told


@dataclass
class Certificates:
    """The steps of this part. n: votes an image, besides the n0 that select its class."""

    case: Case
    sigma: float = 0.25
    n: int = 10_000
    n0: int = 100
    seconds: float = 30.0
    few: int = 10  # images whose certificates are compared
    radii: dict[str, Tensor] = field(default_factory=dict)

    def steps(self) -> list[Step]:
        return [
            ("floor", "", self.floor),
            ("certify", STRICT, self.strict),
            ("certify", OURS, partial(self.ours, self.few)),
            ("certify", OURS, self.longer),
        ]

    def floor(self) -> Iterator[Figure]:
        assert self.case.ready.replicas is not None
        search = self.case.ready.replicas.search
        rates = calibrate(search, self.case.x[:64], seconds=0.5)
        note = f"search copy, {counted(search.batch or 0, 'image')}"
        yield Figure(PART, "floor", OURS, rates.forwards, "forwards/s", note=note, mode=search.mode)

    def certified(self, count: int) -> tuple[float, Tensor]:
        """Seconds, and radii; 0 where the class is wrong or none."""
        options = {"sigma": self.sigma, "n": self.n, "n0": self.n0}
        x, y = self.case.x[:count].cpu(), self.case.y[:count].cpu()
        wait()
        start, found = time.perf_counter(), list[Tensor]()
        groups = evaluate_certified(
            self.case.ready, x, y, [FAR], seed=0, index=torch.arange(len(x)), device=self.case.device, **options
        )
        for (batch,) in groups:
            found.append(torch.from_numpy(batch.outcome.distance))
        wait()
        return time.perf_counter() - start, torch.cat(found)

    def strict(self) -> Iterator[Figure]:
        """The same votes on the same noise by the model as PyTorch calls it, in strict float32."""
        x, y = self.case.x[: self.few], self.case.y[: self.few]
        draws = Draws(0, torch.arange(len(x), device=self.case.device))
        wait()
        start = time.perf_counter()
        with strict_float32(), evaluating(self.case.plain):
            found = certify(self.case.plain, x, sigma=self.sigma, n0=self.n0, n=self.n, draws=draws)
        wait()
        seconds = time.perf_counter() - start
        self.radii[STRICT] = torch.where(found.prediction == y, found.radius, 0).cpu().float()
        yield self.votes(STRICT, len(x), seconds)

    def ours(self, count: int) -> Iterator[Figure]:
        seconds, radii = self.certified(count)
        yield self.votes(OURS, len(radii), seconds)
        self.radii[OURS] = radii
        if STRICT in self.radii:
            yield self.agreement()

    def agreement(self) -> Figure:
        """The share of certificates with the same radius; one that is larger claims what nobody voted for."""
        mine, strict = self.radii[OURS][: self.few], self.radii[STRICT]
        above = (mine - strict).max().item()
        same = ((mine - strict).abs() <= ABOVE * self.sigma).double().mean().item()
        note = f"largest radius above that of strict float32 votes: {above:.2g}; mean radius {mine.mean():.4f}"
        return Figure(PART, "certify", OURS, same, "same radius", above <= ABOVE * self.sigma, note)

    def longer(self) -> Iterator[Figure]:
        """Once more on as many images as a third of the time allows, where that is several times as many."""
        seconds, _ = self.certified(min(self.few, 3))
        count = min(len(self.case.x), int(min(self.few, 3) * self.seconds / 3 / seconds))
        if count >= 3 * self.few:
            seconds, radii = self.certified(count)
            yield self.votes(OURS, len(radii), seconds)

    def votes(self, library: str, images: int, seconds: float) -> Figure:
        note = f"{counted(images, 'image')}, {counted(self.n, 'vote')} each, sigma {self.sigma:g}"
        return Figure(PART, "certify", library, images * (self.n + self.n0) / seconds, "votes/s", note=note)
