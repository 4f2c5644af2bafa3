"""Timings of attacks on a GPU, each beside its peers in one process: `python benchmarks/gpu.py attacks`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from attacks import Case, judged, ours, passes, timed
from gpu_checks import beside, copies, replace_net, standing
from gpu_figures import OURS, Figure, Step, value_of
from gpu_profile import profiled
from peers import PEERS
from torch import Tensor

from robustlib.attacks import ATTACKS
from robustlib.inference import fast_copy
from robustlib.inference.batch_sizes import batch_sizes
from robustlib.inference.replica import Replica
from robustlib.inference.throughput import Rates, Work, calibrate
from robustlib.rng import Draws

EXAMPLES = {"deepfool": 1000, "autoattack": 500}  # at most; PGD takes all that are asked for
REFERENCES = {"pgd": "torchattacks", "deepfool": "adv-lib", "autoattack": "pyautoattack"}
ALIKE = 0.01  # how far PGD's robust accuracy, and DeepFool's median in units of the other's, may lie from a peer's
FEW = 64  # images that a library attacks before it is timed
PART = "attacks"


class Attacks:
    """The steps of this part. figures: of what came before, which later ones are set beside.

    verdicts: a reference's, image by image; where there are none, those of its run here.
    """

    def __init__(self, case: Case, verdicts: Path | None):
        self.case, self.figures = case, list[Figure]()
        self.stands: dict[str, np.ndarray] = {}
        self.verdicts = None if verdicts is None else np.load(verdicts).astype(bool)
        self.rates: Rates | None = None

    def steps(self) -> list[Step]:
        found: list[Step] = [("warm-up", OURS, self.warm_up), ("floor", "", self.floor)]
        if self.case.device.type == "cuda":
            found.append(("floor", "", self.floor_of_forms))
        for task in ("pgd", "curve", "deepfool"):
            found += self.task(task)
        found.append(("profile", "", self.profile))
        return [*found, *self.task("autoattack")]

    def task(self, task: str) -> list[Step]:
        case = first(self.case, EXAMPLES.get(task, len(self.case.x)))
        calls: dict[str, Callable[[Case], Tensor]] = {
            name: partial(by_peer, task, name) for name in PEERS.get(task, {}) if name != OURS
        }
        # The peer that ours is compared with comes first, and ours, which says what is right, after it.
        order = sorted(calls, key=lambda name: name != REFERENCES.get(task))
        calls[OURS] = partial(ours, task)
        return [
            (task, name, partial(self.measure, task, name, calls[name], case))
            for name in [*order[:1], OURS, *order[1:]]
        ]

    def figure(self, task: str, library: str, value: float | None, unit: str, right: bool | None = None,
               note: str = "") -> Figure:  # fmt: skip
        mode = self.case.ready.mode(None if task == "deepfool" else self.case.budget.eps) if library == OURS else ""
        found = Figure(PART, task, library, value, unit, right, note, mode=mode)
        self.figures.append(found)
        return found

    def warm_up(self) -> Iterator[Figure]:
        note = "making the search copy and looking at the model, once a model and process"
        yield self.figure("warm-up", OURS, self.case.ready.seconds, "s", note=note)

    def floor(self) -> Iterator[Figure]:
        """Passes a second of the search copy and of the one in float32: at each batch size, on a CPU at the largest."""
        for name, replica in copies(self.case).items():
            for size in replica.sizes if self.case.device.type == "cuda" else replica.sizes[-1:]:
                rates = calibrate(replace_net(replica, size), self.case.x[:64], seconds=0.5)
                if name == "search":
                    self.rates = rates  # of the largest, in the end
                yield from self.rates_of(f"{name} copy, {size} images", rates, replica.mode)

    def floor_of_forms(self) -> Iterator[Figure]:
        """The same of the forms that there are, at the largest size: whether fusing is worth it."""
        for form in (fast_copy.fused, fast_copy.folded):
            for dtype in (torch.float16, torch.float32):
                size = batch_sizes(self.case.x, dtype)[-1]
                make = partial(fast_copy.search_replica, form, self.case.ready.model, dtype, (size,), True)
                words = f"{str(dtype).removeprefix('torch.')}, {form.__name__}, {size} images"
                try:
                    replica: Replica = make()
                    yield from self.rates_of(words, calibrate(replica, self.case.x[:64], seconds=0.5), replica.mode)
                except Exception as error:  # what cuDNN refuses is a finding too
                    line = (str(error).strip().splitlines() or [""])[0]
                    yield self.figure("floor", OURS, None, "forwards/s", note=f"{words}: not measured: {line}")

    def rates_of(self, words: str, rates: Rates, mode: str) -> Iterator[Figure]:
        for unit, value in (("forwards/s", rates.forwards), ("gradients/s", rates.gradients)):
            yield replace(self.figure("floor", OURS, value, unit, note=words), mode=mode)

    def measure(self, task: str, library: str, call: Callable[[Case], Tensor], case: Case) -> Iterator[Figure]:
        if library == OURS:  # the mode tells of this task
            self.case = replace(self.case, ready=self.case.ready.for_evaluation())
            case = replace(case, ready=self.case.ready)
        if task in ("pgd", "deepfool"):  # libraries load kernels at the first call; that is not timed
            call(first(case, FEW))
        before = passes(case.ready)
        seconds, x_adv = timed(lambda: call(case))
        work = Work(*(b - a for a, b in zip(before, passes(case.ready), strict=True)))
        yield self.figure(task, library, seconds, "s", note=f"{len(case.x)} images")
        accuracy, distance = judged(case, x_adv, task)
        right = self.accuracy_right(task, accuracy) if library == OURS else None
        yield self.figure(task, library, accuracy, "robust accuracy", right)
        if distance is not None:
            yield self.figure(task, library, distance, "median distance", *self.distance_right(library, distance))
        # Of DeepFool the rates say nothing: it takes several gradients of a pass.
        if library == OURS and self.rates is not None and task != "deepfool":
            yield self.figure(task, library, self.rates.seconds(work) / seconds, "floor share")
        if task == "autoattack":
            self.stands[library] = standing(case, x_adv)
            yield from self.compared(library)

    def accuracy_right(self, task: str, accuracy: float) -> bool | None:
        """PGD starts at random: robust accuracies of two tools are alike, no more. At eight radii the last is PGD's."""
        other = {"pgd": REFERENCES["pgd"], "curve": OURS}.get(task)
        expected = None if other is None else value_of(self.figures, "pgd", "robust accuracy", other)
        few = 1 / len(self.case.x)  # one image
        return None if expected is None else abs(accuracy - expected) <= ALIKE + few

    def distance_right(self, library: str, distance: float) -> tuple[bool | None, str]:
        other = REFERENCES["deepfool"]
        expected = value_of(self.figures, "deepfool", "median distance", other)
        if library != OURS or expected is None:
            return None, "" if library != OURS else f"compared with nothing: {other} was not measured"
        return abs(distance / expected - 1) <= ALIKE, f"{distance / expected:.4f} of {other}'s"

    def compared(self, library: str) -> Iterator[Figure]:
        """Verdicts beside the file's, of whichever library, or of ours beside those of the reference's run here."""
        stands, reference = self.stands[library], self.stands.get(REFERENCES["autoattack"])
        expected = reference if self.verdicts is None else self.verdicts[: len(stands)]
        if expected is None or (self.verdicts is None and library != OURS):
            return
        check = beside(stands, expected)
        right = check.right if library == OURS else None
        yield self.figure("autoattack", library, check.value, "images otherwise", right, check.note)

    def profile(self) -> Iterator[Figure]:
        """PGD alone, without verdicts, on one full batch: what each of its steps costs the host and the device."""
        replicas, steps = self.case.ready.replicas, self.case.budget.steps
        assert replicas is not None
        size = replicas.search.sizes[-1] if replicas.search.sizes else 64
        case = first(self.case, size)
        draws = Draws(0, torch.arange(len(case.x), device=case.device))
        attack = partial(ATTACKS["pgd"], eps=case.budget.eps, steps=steps, step_size=case.budget.step_size, draws=draws)
        call = partial(attack, replicas.search, case.x, case.y)
        call()
        for value, unit in profiled(call, steps, case.device):
            yield self.figure("profile", OURS, value, unit, note=f"PGD-{steps}, {len(case.x)} images")


def first(case: Case, n: int) -> Case:
    return replace(case, x=case.x[:n], y=case.y[:n])


def by_peer(task: str, name: str, case: Case) -> Tensor:
    return PEERS[task][name](case.plain, case.x, case.y, case.budget)
