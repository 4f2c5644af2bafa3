"""Certificates at the cost of a request beside offline ones, and attacks within the radii that they state.

A network trained on noisy images is asked for decisions at stated radii, in rounds, and certified by 10,000 votes with
noise of its own. It exits with 1 where the two differ on an image whose offline bound is clear, where an image that
was attacked within a radius that holds gets another class, or where a request takes more than a fifth of the votes.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from robustlib.attacks.pgd import pgd
from robustlib.datasets import load
from robustlib.defences.preprocess import noise
from robustlib.defences.smoothing import Certificate, certify, lower_bound, smoothing
from robustlib.defences.votes import QuickVoter, make_voter
from robustlib.defences.votes_in_rounds import Decision, decide
from robustlib.evaluation.batches import SAMPLE
from robustlib.inference.fast_copy import exact_replica, make_replicas, suits_half
from robustlib.inference.model_modes import evaluating, strict_float32
from robustlib.inference.replica import Replica
from robustlib.models import build
from robustlib.rng import Draws, seeded
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

CPU = torch.device("cpu")
BATCH = 20  # images that are decided together, as of the requests of a moment
FAR = 4  # radii, at which the attack is tried too


@dataclass(frozen=True)
class Case:
    """What is certified. voter: the network with its copy in half precision, where it has one.  x: floats in [0, 1]."""

    net: nn.Module
    voter: Replica | QuickVoter
    x: Tensor
    y: Tensor
    sigma: float
    radii: tuple[float, ...]
    n: int
    alpha: float

    @property
    def options(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "n": self.n, "alpha": self.alpha}


def make_case(
    arch: str, dataset: str, examples: int, epochs: int, images: int, sigma: float, radii: Sequence[float], **how: Any
) -> Case:
    """Train on noisy images, Cohen et al. 2019; the test split's first images are certified."""
    train, test = load.load(dataset, "train"), load.load(dataset, "test")
    facts: dict[str, Any] = {"in_channels": train.in_channels, "num_classes": train.num_classes}
    with seeded(0, "weights", CPU):
        net = build(arch=arch, image_size=train.image_size, normalize=(train.mean, train.std), **facts)
    chosen = min(examples, int(0.9 * len(train)))
    settings = TrainSettings(
        epochs=epochs, learning_rate=0.05, flip=train.image_size[0] > 8, examples=chosen, validation_examples=200,
        validation_steps=1,
    )  # fmt: skip
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    for epoch in fit(noise(net, sigma=sigma), x, y, settings, seed=0, device=CPU):
        click.echo(
            f"epoch {len(epoch.history)}: accuracy on noisy images {epoch.history[-1].clean_accuracy:.3f}", err=True
        )
    net.eval().requires_grad_(False)
    own, labels = torch.from_numpy(test.x[:images]).float() / 255, torch.from_numpy(test.y[:images])
    with strict_float32(), evaluating(net):
        voter = voter_of(net, torch.from_numpy(test.x[:SAMPLE]).float() / 255, sigma)
    return Case(net, voter, own, labels, sigma, tuple(radii), **how)


def voter_of(net: nn.Module, sample: Tensor, sigma: float) -> Replica | QuickVoter:
    if not suits_half(net, CPU):
        return exact_replica(net, sample)
    replicas = make_replicas(net, sample)
    return make_voter(replicas.exact, replicas.search, sample, sigma)


def decided(case: Case, x: Tensor, radii: Sequence[float]) -> tuple[Decision, float]:
    """Decisions with noise that nobody knows, and seconds an image."""
    start, found = time.perf_counter(), list[Decision]()
    with strict_float32():
        for part in x.split(BATCH):
            found.append(decide(case.voter, part, radii=radii, **case.options))
    seconds = (time.perf_counter() - start) / max(len(x), 1)
    parts = {name: torch.cat([getattr(one, name) for one in found]) for name in vars(found[0])}
    return Decision(**parts), seconds


def certified(case: Case) -> tuple[Certificate, float]:
    """Offline certificates, and seconds an image."""
    start = time.perf_counter()
    with strict_float32():
        found = certify(case.voter, case.x, draws=Draws(1, torch.arange(len(case.x))), **case.options)
    return found, (time.perf_counter() - start) / len(case.x)


def spans_of(case: Case, offline: Certificate) -> tuple[Tensor, Tensor]:
    """Between which radii the offline bound of each image does not tell: from what the bound would be if so few votes
    were hits as it states, to Clopper and Pearson's bound from above, both at alpha.
    """
    table = torch.from_numpy(lower_bound(np.arange(case.n + 1), case.n, case.alpha))
    share = torch.special.ndtr(offline.radius.double() / case.sigma)
    hits = torch.searchsorted(table, share - 1e-9)
    lowest, highest = table[(case.n * share).long()], 1 - table[case.n - hits]
    return case.sigma * torch.special.ndtri(lowest), case.sigma * torch.special.ndtri(highest)


def compare(case: Case, found: Decision, offline: Certificate) -> list[str]:
    """What the two disagree on though the offline bound is clear of the radius."""
    faults, (low, high) = [], spans_of(case, offline)
    for k, radius in enumerate(case.radii):
        holds, offline_holds = found.holds[:, k], (offline.prediction >= 0) & (offline.radius >= radius)
        clear = (radius < low) | (radius > high)
        differ = holds != offline_holds
        same_class = found.label[holds] == offline.guess[holds]
        counts = [int(part.sum()) for part in (holds, offline_holds, differ & clear, clear, differ & ~clear, ~clear)]
        words = "holds for {} images, offline for {}; {} of {} clear ones differ, {} of {} others".format(*counts)
        click.echo(f"radius {radius:g}: {words}")
        if (differ & clear).any() or not same_class.all():
            faults.append(f"radius {radius:g}: another decision or class than offline")
    return faults


def attack(case: Case, found: Decision, steps: int, draws: int) -> list[str]:
    """PGD on the expectation over noise, in L2, within each radius that holds: does any image get another class?

    Four times as far, where nothing is promised, the same attack shows that it is one.
    """
    faults = []
    for k, radius in enumerate(case.radii):
        held = found.holds[:, k].nonzero().squeeze(1)
        if not len(held):
            continue
        x, label = case.x[held], found.label[held]
        within, beyond = (changed(case, x, label, times * radius, steps, draws) for times in (1, FAR))
        click.echo(
            f"radius {radius:g}: of {len(held)} attacked images {within[0]} get another class and {within[1]} none, at "
            f"{FAR} times the radius {beyond[0]} and {beyond[1]}"
        )
        if within[0]:
            faults.append(f"radius {radius:g}: {within[0]} attacked images get another class")
    return faults


def changed(case: Case, x: Tensor, label: Tensor, eps: float, steps: int, draws: int) -> tuple[int, int]:
    """How many images get another class once they are attacked within eps, and how many none."""
    soft = smoothing(case.net, sigma=case.sigma, draws=draws)
    with seeded(0, f"attack/{eps}", CPU):
        parts = zip(x.split(BATCH), label.split(BATCH), strict=True)
        x_adv = torch.cat([pgd(soft, one, own, norm="L2", eps=eps, steps=steps) for one, own in parts])
    again, _ = decided(case, x_adv, ())
    return int(((again.label != label) & (again.label >= 0)).sum()), int((again.label < 0).sum())


@click.command()
@click.option("--arch", default="convnet3", show_default=True)
@click.option("--dataset", default="digits", show_default=True, help="Such as parquet:PATH.")
@click.option("--examples", default=12_000, show_default=True, help="Training images.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--images", default=200, show_default=True)
@click.option("--sigma", default=0.25, show_default=True)
@click.option("--radius", "radii", multiple=True, type=float, default=(0.25, 0.5), show_default=True)
@click.option("--n", default=10_000, show_default=True, help="Votes, at most.")
@click.option("--alpha", default=0.001, show_default=True)
@click.option("--steps", default=20, show_default=True, help="Of the attack.")
@click.option("--draws", default=8, show_default=True, help="Noisy copies in each step of the attack.")
def main(steps: int, draws: int, radii: tuple[float, ...], **how: Any) -> None:
    """Print decisions beside offline certificates, votes an image, and what attacks within the radii do."""
    case = make_case(radii=sorted(radii), **how)
    found, seconds = decided(case, case.x, case.radii)
    offline, offline_seconds = certified(case)
    click.echo(case.voter.mode)
    right = ((found.label == case.y).float().mean().item(), (offline.prediction == case.y).float().mean().item())
    click.echo(f"class right: {right[0]:.1%}, offline {right[1]:.1%}; abstained {int((found.label < 0).sum())}")
    faults = compare(case, found, offline)
    quantiles = [int(found.votes.double().quantile(q)) for q in (0.25, 0.5, 0.75, 0.95, 1.0)]
    mean = found.votes.double().mean()
    click.echo(f"votes an image, at 25, 50, 75, 95 and 100 %: {', '.join(map(str, quantiles))}; mean {mean:.0f}")
    if quantiles[1] > case.n / 5:
        faults.append(f"more than a fifth of {case.n} votes in the median: {quantiles[1]}")
    click.echo(f"seconds an image: {seconds:.3f}, offline {offline_seconds:.3f}")
    faults += attack(case, found, steps, draws)
    for line in faults:
        click.echo(f"wrong: {line}", err=True)
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
