"""Checks of the kernels' numbers on a GPU: `python benchmarks/gpu.py correctness`."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from attacks import Case, device_name, judged, ours
from hard_nets import Faint, Steep
from peers import PEERS
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.evaluation.batches import Ready, evaluate_batches
from robustlib.inference.copy_agreement import FLOAT32_TURN, HALF_TURN, repeated, turn
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.model_modes import evaluating, strict_float32
from robustlib.inference.replica import Replica
from robustlib.losses import misclassified
from robustlib.number_text import counted
from robustlib.outcome import join
from robustlib.rng import Draws

SAME = 1e-3  # how far a recorded gradient may lie from the same one computed step by step, in units of the longer


@dataclass(frozen=True)
class Check:
    """A value, and whether it is what is expected. right: None where it was not measured.  mode: of the copy."""

    name: str
    value: float | None
    expected: str
    right: bool | None
    note: str = ""
    seconds: float = 0.0
    device: str = ""


def deepfool(case: Case) -> Iterator[Check]:
    """The median distance of images that were right and fell, beside adv-lib's and beside our own without a copy."""
    own = judged(case, ours("deepfool", case), "deepfool")[1]
    assert own is not None
    bare = partial(ATTACKS["deepfool"], case.plain.eval(), norm="L2")
    others: dict[str, Callable[[], Tensor]] = {
        "adv-lib": lambda: PEERS["deepfool"]["adv-lib"](case.plain, case.x, case.y, case.budget),
        "the bare model": lambda: torch.cat(
            [bare(x, y) for x, y in zip(case.x.split(250), case.y.split(250), strict=True)]
        ),
    }
    for name, call in others.items():
        try:
            with strict_float32():
                median = judged(case, call(), "deepfool")[1]
        except ImportError as error:
            yield Check(f"deepfool, beside {name}", None, "within 1 %", None, f"not measured: {error}")
            continue
        assert median is not None
        right = abs(own / median - 1) <= 0.01
        yield Check(f"deepfool, beside {name}", own / median, "0.99 to 1.01", right, f"{own:.4f} and {median:.4f}")


def autoattack(case: Case, verdicts: Path | None) -> Iterator[Check]:
    """Image by image beside a reference's verdicts: a uint8 an image, 1 where it still was right."""
    if verdicts is None:
        yield Check("autoattack, beside the reference", None, "the same images", None, "not measured: no --verdicts")
        return
    yield beside(standing(case, ours("autoattack", case)), np.load(verdicts)[: len(case.x)].astype(bool))


@torch.no_grad()
def standing(case: Case, x_adv: Tensor) -> np.ndarray:
    """Which attacked images the model classifies right, in strict float32, shape (N,)."""
    with strict_float32():
        fell = [misclassified(case.plain(a), b) for a, b in zip(x_adv.split(250), case.y.split(250), strict=True)]
    return (~torch.cat(fell)).cpu().numpy()


def beside(stands: np.ndarray, expected: np.ndarray) -> Check:
    """Our verdicts beside a reference's, image by image."""
    more, less = np.flatnonzero(stands & ~expected), np.flatnonzero(~stands & expected)
    note = f"{stands.sum()} stand, {expected.sum()} of the reference's; ours alone {more.tolist()}, its {less.tolist()}"
    # Random numbers differ between tools: an image may fall to one and not to the other.
    right = max(len(more), len(less)) <= max(1, len(stands) // 300)
    return Check("autoattack, beside the reference", float(len(more) + len(less)), "an image each way", right, note)


def gradients(case: Case) -> Iterator[Check]:
    """Recorded passes beside the same network step by step, and the search copy beside the model, at each size."""
    replicas = case.ready.replicas
    assert replicas is not None
    for name, replica in copies(case).items():
        for size in sizes_of(replica, case.device):
            x, alone = repeated(case.x, size), replace_net(replica, size)
            for count in (1, 10):
                values, values_told = partial(first_logits, count=count), counted(count, "value")
                found = alone.values_and_grads(x, values)[2]
                if replica.recorded:
                    eager = replace_net(replica, size, cast(Graphs, replica.net).net).values_and_grads(x, values)[2]
                    far = turn(found, eager)
                    yield Check(f"{name}, {size} images, {values_told}: recorded", far, f"<= {SAME}", far <= SAME)
                few = slice(0, 64)
                with strict_float32():
                    exact = replicas.exact.values_and_grads(x[few], values)[2]
                far, most = turn(found[few], exact), FLOAT32_TURN if replica.precision == torch.float32 else HALF_TURN
                yield Check(f"{name}, {size} images, {values_told}: the model's", far, f"<= {most}", far <= most)


def sizes_of(replica: Replica, device: torch.device) -> tuple[int, ...]:
    """All batch sizes; on a CPU, where they agree to the bit, the smallest."""
    return replica.sizes if device.type == "cuda" or replica.recorded else replica.sizes[:1]


def first_logits(logits: Tensor, count: int) -> Tensor:
    return logits[:, :count]


def copies(case: Case) -> dict[str, Replica]:
    """The search copy, and the one in float32 where that is another."""
    replicas = case.ready.replicas
    assert replicas is not None
    found = {"search": replicas.search}
    return found if replicas.fine is replicas.search else found | {"fine": replicas.fine}


def replace_net(replica: Replica, size: int, net: nn.Module | None = None) -> Replica:
    """The replica at this batch size alone, without its float32 copy."""
    kinds = {"dtype": replica.dtype, "memory_format": replica.memory_format, "precision": replica.precision}
    return Replica(net or replica.net, sizes=(size,), drift=replica.drift, **kinds)


def drift(case: Case) -> Iterator[Check]:
    """How far logits lie from the model's at each batch size, in units of the drift that is allowed for."""
    replicas = case.ready.replicas
    assert replicas is not None
    x = case.x[:250]
    exact = replicas.exact(x)
    for name, replica in copies(case).items():
        for size in sizes_of(replica, case.device):
            far = (replace_net(replica, size)(x) - exact).abs().max().item() / max(replica.drift, 1e-30)
            yield Check(f"{name}, {size} images: drift", far, "<= 1 of what is allowed for", far <= 1)


def ranges(case: Case) -> Iterator[Check]:
    """Networks that float16 cannot compute fall all the same, and the search ends in float32."""
    device, draws = case.device, Draws(0, torch.arange(64, device=case.device))
    steep = Steep().eval().to(device)
    generator = torch.Generator().manual_seed(0)
    x = (0.5 + 0.02 * torch.randn(64, 3, 4, 4, generator=generator)).clamp(0, 1).to(device)
    y = torch.zeros(64, dtype=torch.long, device=device)
    attack = partial(ATTACKS["pgd"], eps=0.1, steps=20, random_start=False, loss="margin")
    ready = Ready(steep, replicas := make_replicas(steep, x), 2, 0.0)
    batches = list(evaluate_batches(steep, x, y, [("pgd", attack)], eps=0.1, device=device, ready=ready))
    stands = 1 - float(join([batch.outcome for batch in batches]).success.mean())
    note = f"{replicas.search.mode}, {replicas.passes.overflows} images in float32"
    yield Check("beyond float16's range: robust accuracy", stands, "0", stands == 0, note)
    faint = Faint().eval().to(device)
    replicas = make_replicas(faint, torch.rand(64, 1, 4, 4, generator=generator).to(device))
    x = torch.full((64, 1, 4, 4), 0.2, device=device)
    with evaluating(faint), strict_float32():
        found = ATTACKS["apgd-ce"](replicas.search, x, y, eps=0.1, steps=10, draws=draws)
        stands = (~misclassified(faint(found), y)).float().mean().item()
    yield Check("a last step below float16: robust accuracy", stands, "0", stands == 0, replicas.search.mode)


STEPS: dict[str, tuple[Norm, dict[str, Any]]] = {
    "pgd": ("Linf", {"steps": 20}),
    "mifgsm": ("Linf", {"steps": 20}),
    "apgd-ce": ("Linf", {"steps": 50}),
    "apgd-t": ("Linf", {"steps": 30, "targets": 2}),
    "fab-t": ("Linf", {"steps": 30, "targets": 2}),
    "square": ("Linf", {"queries": 300}),
    "deepfool": ("L2", {}),
    "fmn": ("L2", {"steps": 50}),
    "cw": ("L2", {"steps": 40, "search_steps": 2}),
}


def recorded_steps(case: Case) -> Iterator[Check]:
    """Attacks whose steps are recorded beside the same attacks on the same copy step by step: who falls. Attacks that
    look for the nearest image are given half of an L2 of 1, so that some stand.
    """
    replicas = case.ready.replicas
    assert replicas is not None
    if case.device.type == "cpu" and not replicas.search.recorded:
        yield Check("recorded steps", None, "who falls is the same", None, "not measured: a CPU records nothing")
        return
    for name, (norm, options) in STEPS.items():
        eps = case.budget.eps if norm == "Linf" else 0.5
        search = replicas.for_radius(eps)
        step_by_step = search.but(net=search.asked().net, recorded=False)
        found = []
        for replica in (search, step_by_step):
            replica.recordings.forget()
            with strict_float32():
                x_adv = ATTACKS[name](replica, case.x, case.y, norm=norm, eps=eps, **options)
            found.append(standing(case, x_adv))
        what, apart = f"{name}: recorded steps", int((found[0] != found[1]).sum())
        # Last bits may differ on a GPU, and with them an image at the boundary.
        most, played = max(1, len(case.x) // 100), search.recordings.played > 0
        note = f"{found[1].sum()} stand; {search.mode}"
        yield Check(what, float(apart), f"recorded, <= {most} images apart", played and apart <= most, note)


def correctness(case: Case, verdicts: Path | None, seconds: float = math.inf) -> Iterator[Check]:
    """Every check, told as it comes. seconds: after which none is begun."""
    began = time.perf_counter()
    parts: list[partial[Iterator[Check]]] = [
        partial(ranges, case),
        partial(gradients, case),
        partial(drift, case),
        partial(recorded_steps, case),
        partial(deepfool, case),
        partial(autoattack, case, verdicts),
    ]
    for part in parts:
        start = time.perf_counter()
        if start - began > seconds:
            yield Check(part.func.__name__, None, "", None, f"not measured: {seconds:.0f} s were over")
            continue
        for check in told(part):
            yield replace(check, seconds=time.perf_counter() - start, device=device_name(case.device))
            start = time.perf_counter()


def told(part: partial[Iterator[Check]]) -> Iterator[Check]:
    """The checks of a part. One that raises is wrong, and the last of its part: the next parts are asked."""
    try:
        yield from part()
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        yield Check(part.func.__name__, None, "no error", False, f"{type(error).__name__}: {line}")
