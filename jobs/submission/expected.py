"""The expected seconds of a study's jobs: calibrated on each job's own model and batch, corrected by stored results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustlib.attacks import ATTACKS
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.inference.throughput import VERDICTS, Work
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN, TrainSettings
from robustq.jobs.queue.pace import Pace
from robustq.jobs.running.attacks import recipe_of
from robustq.jobs.running.explanations import arguments_of
from robustq.jobs.running.inputs import load_data
from robustq.jobs.specs import EvalSpec, TrainSpec
from robustq.jobs.submission.calibration import Calibration, Calibrations
from robustq.jobs.submission.cost import AUDIT_WORK, explanation_work, surrogate_work
from robustq.jobs.submission.plan import Planned, Resolved

# Rules of thumb, for what is known only once a network was trained and attacked.
CLEAN = {1: 0.95, 3: 0.75}  # of images, that are classified correctly, by channels
COST_OF_HARDENING = 0.8  # of that, where a network is trained on attacks
SOON = 0.25  # of an attack's passes, that it takes to break what it breaks
LATER = 0.1  # of what falls at all, that is left for the attacks after the first
SHRUNK = 0.7  # of what falls at a radius below others, that is attacked there: the rest falls by being drawn back
CHECKS = Work(1)  # of an evaluation, of some of its images
HALF_STANDS = {"Linf": 0.64, "L2": 0.4, "L1": 8.0}  # radius at which half stands, in Linf over the root of the pixels
HARDENED = 1.25  # times the radius of its training, at which half stands of a network that was trained on attacks
TO_THE_END = frozenset({"fgsm", "cw", "fmn", "fab", "fab-t", "deepfool", CERTIFY})  # they stop at no success


@dataclass(frozen=True)
class Estimator:
    """Estimates of a study's jobs.

    settings: of each training, by its key.  done: keys of what is done, which takes nothing.
    """

    resolved: Resolved
    calibrations: Calibrations
    pace: Pace
    settings: dict[str, TrainSettings]
    done: frozenset[str] = frozenset()

    def seconds(self, planned: Planned) -> float | None:
        """What a job takes on one slot: NaN where it needs a gradient that there is not, None where it asks for a GPU
        that there is not.
        """
        spec = planned.spec
        if planned.key in self.done or not isinstance(spec, TrainSpec | EvalSpec):
            return 0.0  # worst cases read what the others stored
        calibrated = self.training(spec) if isinstance(spec, TrainSpec) else self.evaluation(spec)
        if calibrated is None or math.isnan(calibrated):
            return calibrated
        return self.pace.seconds(columns_of(planned), planned.cost, calibrated)

    def training(self, spec: TrainSpec) -> float | None:
        epoch = self.calibrations.epoch(spec)
        return None if epoch is None else epoch * spec.settings.epochs

    def evaluation(self, spec: EvalSpec) -> float | None:
        total = len(load_data(spec.data))
        n = total if spec.examples == "all" else min(spec.examples, total)
        asked = [(spec.model, Work(0)), *surrogate_work(spec, spec.data)]
        found = [self.calibrations.of(model, n, spec.eot_draws, given=spec.train is None) for model, _ in asked]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        besides = sum(one.seconds(work) for one, (_, work) in zip(known, asked, strict=True))
        # A model is made ready for the first of its evaluations.
        first = spec.attack.name == self.resolved.study.attacks[0].name
        ready = known[0].ready_seconds / max(1, len(spec.attack.curve)) if first else 0.0
        if spec.attack.name == EXPLAIN:
            ready += self.explained(spec, known[0])[0]
        return ready + n * self.image_seconds(spec, known[0]) + besides

    def image_seconds(self, spec: EvalSpec, found: Calibration) -> float:
        """Of an image of an evaluation, by the passes that it is expected to take."""
        attack = spec.attack
        if attack.name == AUDIT:
            return found.seconds(AUDIT_WORK + Work(2 * attack.params["queries"]))
        if attack.name == EXPLAIN:
            return self.explained(spec, found)[1]
        # In a ball of radius 0 lies the image alone.
        stages = [] if attack.eps == 0 else recipe_of(attack, attack.eps, found.ready.classes).stages
        sigma = attack.params.get("sigma") if attack.name == CERTIFY else None
        each = [found.seconds(stage_work(*named)) * found.slower(*named, sigma) for named in stages]
        if attack.name == CERTIFY:
            return sum(each) / max(1, len(attack.curve))
        if found.randomised:  # every attack meets every image, at each radius by itself
            scored = found.seconds(Work(2 * spec.draws // spec.eot_draws))
            return scored + sum(
                seconds * (self.correct(spec, found) if name == "deepfool" else 1.0)
                for (name, _), seconds in zip(stages, each, strict=True)
            )
        stands = [self.standing(spec, found, eps) for eps in attack.curve or (attack.eps,)]
        shares = run_shares([name for name, _ in stages], stands)
        searched = self.correct(spec, found) * sum(seconds * share for seconds, share in zip(each, shares, strict=True))
        return searched / len(stands) + found.seconds(VERDICTS + CHECKS)

    def explained(self, spec: EvalSpec, found: Calibration) -> tuple[float, float]:
        """Seconds until the first image is explained, and of an image then. One thread computes, whatever a job has."""
        return found.explaining(arguments_of(spec), explanation_work(spec.attack.params))

    def standing(self, spec: EvalSpec, found: Calibration, eps: float | None) -> float:
        """The share of the correctly classified images that will stand; all, to an attack without a radius."""
        norm = spec.attack.norm
        if not eps or norm is None:
            return 1.0
        if (seen := found.standing(norm, eps)) is not None:
            return seen
        pixels = math.prod(load_data(spec.data).images.shape[1:])
        return share_standing(norm, eps, pixels, self.settings.get(spec.train or ""))

    def correct(self, spec: EvalSpec, found: Calibration) -> float:
        """The share of images that will be classified correctly."""
        if (seen := found.correct) is not None:
            return seen
        settings = self.settings.get(spec.train or "")
        hardened = settings is not None and settings.objective != "standard"
        share = CLEAN.get(load_data(spec.data).in_channels, CLEAN[3])
        return share * COST_OF_HARDENING if hardened and share < CLEAN[1] else share


def estimator(resolved: Resolved, plan: Sequence[Planned], calibrations: Calibrations, **known: Any) -> Estimator:
    """Estimates of these jobs. known: `pace` and `done`, see `Estimator`."""
    settings = {planned.key: planned.spec.settings for planned in plan if isinstance(planned.spec, TrainSpec)}
    return Estimator(resolved, calibrations, settings=settings, **known)


def columns_of(planned: Planned) -> dict[str, Any]:
    """What results of jobs like this one are known by."""
    attack = planned.spec.attack if isinstance(planned.spec, EvalSpec) else None
    about = {name: getattr(attack, name, None) for name in ("norm", "eps")}
    named = {"arch": planned.arch, "defence": planned.defence, "dataset": planned.dataset, "model": planned.model}
    method = attack.params["method"] if attack is not None and attack.name == EXPLAIN else None
    what = {"kind": planned.spec.kind, "attack": None if attack is None else attack.name, "method": method}
    return about | named | what


def stage_work(name: str, attack: AttackFunction) -> Work:
    """Passes of an image that stands to the end of an attack."""
    params = as_stage(attack).defaults
    return Work(params["n0"] + params["n"]) if name == CERTIFY else ATTACKS[name].cost(params)


def run_shares(names: Sequence[str], stands: Sequence[float]) -> list[float]:
    """How much of each attack's passes a correctly classified image takes, of attacks in turn, over all radii.

    stands: the share of images that stand at each radius, rising. An image takes all of them at the largest radius at
    which it stands, and little at those at which it falls.
    """
    stand, shares = stands[0], list[float]()
    fall = sum(1 - share for share in stands[:-1]) * SHRUNK + (1 - stands[-1])
    for place, name in enumerate(names):
        if place:
            shares.append(stand + LATER * (1 - stand))
        else:
            shares.append(1.0 if name in TO_THE_END and len(stands) == 1 else stand + SOON * fall)
    return shares


def share_standing(norm: str, eps: float, pixels: int, settings: TrainSettings | None) -> float:
    """The share of correctly classified images that stands within a radius, as far as that can be told before the
    network is trained: half at a radius that falls with the number of pixels, or that it was trained to withstand.
    """
    half = HALF_STANDS[norm] / (math.sqrt(pixels) if norm == "Linf" else 1.0)
    if settings is not None and settings.objective != "standard" and settings.attack.get("norm", "Linf") == norm:
        half = max(half, HARDENED * (settings.attack.get("eps") or 0.0))
    return 1 / (1 + (eps / half) ** 2)
