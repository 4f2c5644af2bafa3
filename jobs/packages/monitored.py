"""The rates of signals: on clean images, on the stored attack's, under Square, and under attacks that know them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.datasets.choose import spread
from robustlib.datasets.lazy_images import LazyImages
from robustlib.inference.model_modes import as_images, evaluating
from robustlib.metrics import wilson
from robustlib.models.onnx_model import onnx_model
from robustlib.monitoring.adaptive_attacks import agreeing_under_noise, staying_in_range
from robustlib.monitoring.image_statistics import out_of_range, ranges_of
from robustlib.monitoring.noise_votes import disagreement, noise_votes, vote_margin
from robustlib.monitoring.query_attacks import Queried, query_attack
from robustlib.monitoring.query_windows import QueryWindows, tiny_pictures
from robustlib.monitoring.signals import MARGIN, NOISE, RANGE, REPEATS, SIGNALS
from robustlib.number_text import counted
from robustlib.packages.manifest import ONNX
from robustlib.packages.onnx_session import OnnxSession
from robustq.jobs.packages.card import Flagged, Monitoring, SignalRate
from robustq.jobs.packages.judged_program import Judged

Tell = Callable[[str], None]
CPU = torch.device("cpu")
LEAST_IMAGES = 20  # of a split, half of which the thresholds come from
RARE = 0.02  # the share of clean images that a threshold is set to flag, where it can be set so
CHEAP_IMAGES = 2000  # clean images whose statistics and distances thresholds come from: no pass is needed
SIGMAS = (0.2, 0.1, 0.05, 0.02, 0.01)
AGREED = 0.95  # of the noisy copies of clean images: the largest noise that leaves so many their class is taken
COPIES, FEW_COPIES = 16, 4
ATTACKED, QUERIED, QUERIES, STEPS = 50, 8, 200, 20
SEED = 0


@dataclass(frozen=True)
class Signals:
    """What tells a signal from none. ask: the program.  sigma: of the noise of votes.  limits: by signal."""

    ask: OnnxSession
    sigma: float
    limits: dict[str, float]
    ranges: dict[str, tuple[float, float]]

    def votes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Disagreement and margin of each image."""
        votes = noise_votes(self.ask, x, sigma=self.sigma, copies=COPIES, random=np.random.default_rng(SEED))
        return disagreement(votes, self.ask(x).argmax(axis=1)), vote_margin(votes)

    def flags(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Which images each signal of single images flags, (B,) each."""
        differing, near = self.votes(x)
        found = {NOISE: differing > self.limits[NOISE], MARGIN: near < self.limits[MARGIN]}
        return found | {RANGE: out_of_range(x, self.ranges)}

    def repeated(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Which queries of each client are flagged."""
        windows = QueryWindows()
        return [windows.distances(f"client {i}", some) <= self.limits[REPEATS] for i, some in enumerate(pictures)]


def monitoring_of(about: Judged, onnx: bytes, most: int, tell: Tell) -> Monitoring | None:
    """The signals of the program, each with its rates on at most so many images; None for a split of too few."""
    dataset = about.dataset
    if len(dataset) < LEAST_IMAGES:
        tell(f"no signal is measured: the split has {counted(len(dataset), 'image')}, expected at least {LEAST_IMAGES}")
        return None
    every = np.arange(len(dataset)) if about.attacked is None else about.attacked.index
    places = spread(len(every), min(most, len(dataset) // 2))
    index = every[places]
    tell(f"{ONNX}: signals are measured on {counted(len(index), 'image')}")
    rest = np.setdiff1d(np.arange(len(dataset)), index)
    session = OnnxSession(onnx, ONNX)
    voted, cheap = (rest[spread(len(rest), many)] for many in (most, CHEAP_IMAGES))
    signals = calibrated(session, pixels(about, voted), pixels(about, cheap))
    clean = pixels(about, index)
    rates = rates_on(signals, "clean", clean, None, "images of the split that no threshold comes from")
    note = "no attack within a radius is stored: under attack nothing was measured"
    if about.attacked is not None:
        rates += stored_rates(about, signals, places)
        rates += adaptive_rates(about, signals, onnx, index)
        note = unattacked(rates)
    return Monitoring(
        sigma=signals.sigma,
        copies=COPIES,
        window=QueryWindows.window,
        nearest=QueryWindows.nearest,
        thresholds=signals.limits,
        ranges=signals.ranges,
        rates=rates,
        note=note,
    )


def unattacked(rates: Sequence[SignalRate]) -> str:
    """What the card says of signals that no attack knew; empty where there are none."""
    left = [name for name in SIGNALS if not any(one.signal == name and one.on == "adaptive" for one in rates)]
    why = "the network gives no gradient" if REPEATS not in left else "the program gets no image right"
    return f"{why}: by an attack that knows it nothing was measured of {', '.join(left)}" if left else ""


def pixels(about: Judged, index: np.ndarray) -> np.ndarray:
    return as_images(LazyImages(about.dataset.images)[torch.tensor(index).long()], CPU).numpy()


def calibrated(session: OnnxSession, x: np.ndarray, more: np.ndarray) -> Signals:
    """Thresholds by clean images. x: what votes are asked about.  more: what no pass is needed for."""
    label, sigma = session(x).argmax(axis=1), SIGMAS[-1]
    for sigma in SIGMAS:
        random = np.random.default_rng(SEED)
        votes = noise_votes(session, x, sigma=sigma, copies=FEW_COPIES, random=random)
        if 1 - disagreement(votes, label).mean() >= AGREED:
            break
    signals = Signals(session, sigma, {}, ranges_of(more, RARE))
    differing, near = signals.votes(x)
    distances = QueryWindows().distances("one", tiny_pictures(more))
    closest = float(distances.min())
    signals.limits.update(
        {
            NOISE: float(np.quantile(differing, 1 - RARE, method="higher")),
            MARGIN: float(np.quantile(near, RARE, method="lower")),
            # Half of the least: nobody's different images are so near, and an attack's are far nearer.
            REPEATS: closest / 2 if np.isfinite(closest) else 0.0,
        }
    )
    return signals


def flagged(found: np.ndarray, clients: int | None = None) -> Flagged:
    """clients: whose queries they are. Those of one are no samples of their own: the interval is of so many."""
    rate, n = float(found.mean()), len(found) if clients is None else clients
    low, high = wilson(rate * n, n)
    return Flagged(n=len(found), rate=rate, low=low, high=high)


def row(signal: str, on: Any, found: np.ndarray, fooled: np.ndarray | None, note: str) -> SignalRate:
    missed = None if fooled is None else float((fooled & ~found).mean())
    share = None if fooled is None else float(fooled.mean())
    return SignalRate(signal=signal, on=on, flagged=flagged(found), fooled=share, missed=missed, note=note)  # pyright: ignore[reportArgumentType]


def rates_on(signals: Signals, on: Any, x: np.ndarray, label: np.ndarray | None, note: str) -> list[SignalRate]:
    """Every signal on the same images, of which one client asks about each once."""
    fooled = None if label is None else signals.ask(x).argmax(axis=1) != label
    found = [row(signal, on, flags, fooled, note) for signal, flags in signals.flags(x).items()]
    (repeats,) = signals.repeated([tiny_pictures(x)])
    return [*found, row(REPEATS, on, repeats, fooled, note)]


def stored_rates(about: Judged, signals: Signals, places: np.ndarray) -> list[SignalRate]:
    assert about.attacked is not None and about.stored.primary is not None
    x_adv = as_images(torch.from_numpy(about.attacked.x_adv[places]), CPU).numpy()
    note = f"attacked images of job {about.stored.primary.job}"
    return rates_on(signals, "stored", x_adv, about.attacked.label[places], note)


def adaptive_rates(about: Judged, signals: Signals, onnx: bytes, index: np.ndarray) -> list[SignalRate]:
    """Square, plain and disguised, and PGD that keeps each signal of single images still; on images that are right."""
    primary = about.stored.primary
    assert primary is not None and primary.norm is not None and primary.eps is not None
    ball: dict[str, Any] = {"norm": primary.norm, "eps": primary.eps}
    clean, label = pixels(about, index), about.dataset.y[index]
    right = np.flatnonzero(signals.ask(clean).argmax(axis=1) == label)
    if not len(right):
        return []
    x, y = torch.from_numpy(clean[right]), torch.from_numpy(label[right]).long()
    program = onnx_model(onnx, ONNX, **about.facts())
    few, many = spread(len(x), QUERIED), spread(len(x), ATTACKED)
    found = query_rates(signals, program, x[few], y[few], ball)
    some, own = x[many], y[many]
    if not has_gradient(about.network, some[:1]):
        return found
    with evaluating(about.network):
        still = agreeing_under_noise(about.network, some, own, **ball, sigma=signals.sigma, steps=STEPS)
        inside = staying_in_range(about.network, some, own, **ball, ranges=signals.ranges, steps=STEPS)
    for x_adv, signal_names, note in (
        (still, (NOISE, MARGIN), f"PGD-{STEPS} on the expectation over the noise, the image itself among its copies"),
        (inside, (RANGE,), f"PGD-{STEPS} that is charged for what is out of range, drawn back into it"),
    ):
        images = x_adv.numpy()
        fooled, flags = signals.ask(images).argmax(axis=1) != own.numpy(), signals.flags(images)
        found += [row(signal, "adaptive", flags[signal], fooled, note) for signal in signal_names]
    return found


def has_gradient(network: nn.Module, x: Tensor) -> bool:
    with torch.enable_grad():
        return network(x.clone().requires_grad_()).requires_grad


def query_rates(signals: Signals, program: nn.Module, x: Tensor, y: Tensor, ball: dict[str, Any]) -> list[SignalRate]:
    found = []
    for on, disguised, how in (
        ("square", False, "Square"),
        ("adaptive", True, "Square whose queries are shifted, brightened and noised anew each time"),
    ):
        done = query_attack(program, x, y, **ball, queries=QUERIES, seed=SEED, disguised=disguised)
        found.append(query_row(signals, on, done, f"{how}, at most {QUERIES} queries of a client on each image"))
    return found


def query_row(signals: Signals, on: Any, done: Queried, note: str) -> SignalRate:
    """The share of queries that are flagged; an attack that was flagged at any of its queries is not missed."""
    each = signals.repeated(done.pictures)
    seen = np.array([flags.any() for flags in each])
    first = [int(np.flatnonzero(flags)[0]) + 1 for flags in each if flags.any()]
    attacks = counted(len(seen), "attack")
    told = f"; {counted(int(seen.sum()), f'of {attacks} is flagged', f'of {attacks} are flagged')}"
    told += f", at their query {int(np.median(first))} in the median" if first else ""
    return SignalRate(
        signal=REPEATS,
        on=on,
        flagged=flagged(np.concatenate(each), len(each)),
        fooled=float(done.fooled.mean()),
        missed=float((done.fooled & ~seen).mean()),
        note=note + told,
    )
