"""A model's calibration on this machine: what passes of it, an attack's steps and an epoch of training take here."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import SAMPLE, Ready, fitting, make_ready
from robustlib.evaluation.certified import voter_for
from robustlib.evaluation.explanation import SAMPLE as EXPLAINED_AT_ONCE
from robustlib.evaluation.explanation import explained as ready_to_explain
from robustlib.evaluation.explanation_stability import stability_batches
from robustlib.evaluation.randomised_models import GROUP
from robustlib.gpu_failures import asks_for_a_gpu
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import as_images, evaluating, strict_float32
from robustlib.inference.oracle import Oracle
from robustlib.inference.predict import classes_of
from robustlib.inference.threads import make_shares, threads_each, threads_of
from robustlib.inference.throughput import Clock, Rates, Work, rates_at, timed
from robustlib.rng import Draws
from robustlib.settings import CERTIFY
from robustlib.training.trial import epoch_seconds
from robustq.jobs.running.inputs import build_model, load_data, unmeasured
from robustq.jobs.specs import DataRef, ModelSpec, TrainSpec

RATE_SECONDS = 0.6  # that passes of a model are measured for
TRIAL_SECONDS = 0.5  # of an attack, or of a training's steps; an attack of longer steps is as quick as its passes
KEPT = 3  # calibrations, whose models fill memory: a study's jobs come model by model
NEXT_TO_NOTHING = 1e-3  # of a radius: no image falls within it, so that an attack takes all of its steps
PROBE_STEPS, PROBE_SECONDS = 10, 5.0  # of PGD on a model that is given
LEAST_EXPLAINED = 4  # images, that tell what measures and curves take beside the passes
FEW_STEPS, FEW_QUERIES, FEW_VOTES = 3, 60, 64
ENOUGH_TO_RECORD = 16  # steps: a GPU plays those of longer runs as recordings, and is many times as quick then
# Of attacks whose gradients of several values share a pass forward, which their costs count for each: measured.
UNTRIED = {"deepfool": 0.4, "fab": 0.5}


@dataclass
class Calibration:
    """What a model takes on this machine.

    rates: passes of an image; of a randomised model of all draws of an expectation.  ready_seconds: until it was ready.
    images, answers: as many as are worked on together, and the classes that it names for them.  labels: of the first of
    them, where the model is the one that will be attacked; None where it is yet to be trained.
    oracle: what attacks ask.  shares: among how many threads or processes images are shared out.  threads: of each.
    """

    ready: Ready
    rates: Rates
    ready_seconds: float
    oracle: Oracle
    images: Tensor
    answers: Tensor
    labels: Tensor | None
    shares: float
    threads: int
    clock: Clock
    slowness: dict[Any, float] = field(default_factory=dict)
    explained: dict[str, tuple[float, float]] = field(default_factory=dict)
    stands: dict[tuple[Norm, float], float | None] = field(default_factory=dict)

    @property
    def randomised(self) -> bool:
        return self.ready.replicas is None

    @property
    def correct(self) -> float | None:
        """The share of a few images that it classifies correctly; None where it is yet to be trained."""
        if self.labels is None:
            return None
        return float((self.answers[: len(self.labels)] == self.labels).float().mean())

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """As many threads as each share has, and the model as jobs have it; what it prints goes to stderr."""
        quiet = contextlib.redirect_stdout(sys.stderr)
        with threads_of(self.threads), quiet, strict_float32(), evaluating(self.ready.model):
            yield

    def seconds(self, work: Work) -> float:
        """Of passes alone; NaN for gradients of a model that has none."""
        return self.rates.seconds(work) / self.shares

    @cached_property
    def explained_rates(self) -> Rates:
        """Passes of an image that is explained: on one thread, by the model as given in float32. Those of any other
        image where its jobs refuse to explain the model, and say so.
        """
        if self.randomised:
            return self.rates
        images = self.images[:EXPLAINED_AT_ONCE]
        try:
            quiet = contextlib.redirect_stdout(sys.stderr)
            with threads_of(1), quiet, ready_to_explain(self.ready.model, images) as found:
                return rates_at(found.quick, images, len(images), seconds=RATE_SECONDS, clock=self.clock)
        except ValueError:  # an answer depends on the other images of its batch
            return self.rates

    def explaining(self, arguments: Mapping[str, Any], work: Work) -> tuple[float, float]:
        """Seconds until a model is ready to be explained, and of an image then, from as many as are soon done; by its
        passes alone, where these take long.

        arguments: of `stability_batches`.  work: the passes of an image.
        """
        key = repr(arguments)
        if key not in self.explained:
            self.explained[key] = self.explained_a_few(arguments, work)
        return self.explained[key]

    def explained_a_few(self, arguments: Mapping[str, Any], work: Work) -> tuple[float, float]:
        passes = self.explained_rates.seconds(work)
        if self.randomised or not passes * LEAST_EXPLAINED <= TRIAL_SECONDS:
            return 0.0, passes
        few = max(LEAST_EXPLAINED, min(len(self.images), arguments["batch_size"], int(TRIAL_SECONDS / passes)))
        x = self.images.cpu().repeat(-(-2 * few // len(self.images)), 1, 1, 1)[: 2 * few]
        y = self.answers.cpu().repeat(-(-2 * few // len(self.images)))[: 2 * few]
        named = {**arguments, "batch_size": few, "device": self.images.device}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                batches = stability_batches(self.ready.model, x, y, **named)
                first, second = (timed(lambda: next(batches), self.clock) for _ in range(2))
        except ValueError:  # its jobs refuse the model too, and say why
            return 0.0, passes
        return max(0.0, first - second), second / few

    def standing(self, norm: Norm, eps: float) -> float | None:
        """The share of its correctly classified images that PGD leaves standing within a radius, of a few; None where
        it is yet to be trained, or that would take long.
        """
        if (norm, eps) not in self.stands:
            self.stands[norm, eps] = self.attacked(norm, eps)
        return self.stands[norm, eps]

    def attacked(self, norm: Norm, eps: float) -> float | None:
        passes = ATTACKS["pgd"].cost({"steps": PROBE_STEPS})
        few = 0 if self.labels is None else len(self.labels)
        if self.labels is None or self.randomised or not self.rates.seconds(passes) * few < PROBE_SECONDS:
            return None
        x, y = self.images[:few], self.labels
        with self.at_work():
            right = classes_of(self.oracle.logits(x)) == y
            if not right.any():
                return None
            draws = Draws(0, torch.arange(few, device=x.device))
            x_adv = ATTACKS["pgd"](self.oracle, x, y, norm=norm, eps=eps, steps=PROBE_STEPS, draws=draws)
            stands = right & (classes_of(self.oracle.logits(x_adv)) == y)
        return int(stands.sum()) / int(right.sum())

    def slower(self, name: str, attack: AttackFunction, sigma: float | None = None) -> float:
        """How many times as long an attack takes as its passes, from a few of its steps."""
        stage = as_stage(attack)
        # The radius is another in a trial.
        key = (name, *sorted((k, repr(v)) for k, v in stage.defaults.items() if k != "eps"))
        if key not in self.slowness:
            self.slowness[key] = self.tried(name, attack, sigma)
        return self.slowness[key]

    def tried(self, name: str, attack: AttackFunction, sigma: float | None) -> float:
        stage = as_stage(attack)
        few, work = fewer(name, stage.defaults, ENOUGH_TO_RECORD if self.images.is_cuda else FEW_STEPS)
        expected = self.rates.seconds(work) * len(self.images)
        if math.isnan(expected) or expected > TRIAL_SECONDS or work == Work(0) or stage.lacks_surrogate:
            return UNTRIED.get(name, 1.0)
        asked: Any = self.oracle
        if name == CERTIFY:
            with threads_of(self.threads):
                asked = voter_for(self.ready, self.images, sigma, self.images.device)
        elif isinstance(stage.defaults.get("eps"), float):
            few["eps"] = NEXT_TO_NOTHING * stage.defaults["eps"]
        draws = Draws(0, torch.arange(len(self.images), device=self.images.device))
        given = (self.images,) if name == CERTIFY else (self.images, self.answers)
        with self.at_work():
            took = [timed(lambda: stage(asked, *given, draws=draws, **few), self.clock) for _ in range(2)]
        return took[-1] / expected


def fewer(name: str, params: Mapping[str, Any], steps: int = FEW_STEPS) -> tuple[dict[str, Any], Work]:
    """Parameters under which an attack is soon done, and the passes that are then taken of an image.

    steps: at most so many.
    """
    few: dict[str, Any] = {}
    if name == CERTIFY:
        few = {"n0": min(params["n0"], FEW_VOTES), "n": min(params["n"], FEW_VOTES)}
        return few, Work(few["n0"] + few["n"])
    if "steps" in params:
        few["steps"] = 1 if name == "deepfool" else min(params["steps"], steps)  # it may be done after one
    if "queries" in params:
        first = ATTACKS[name].first_step
        few["queries"] = min(params["queries"], max(FEW_QUERIES, 0 if first is None else first(params)))
    few |= {each: 1 for each in ("targets", "search_steps") if each in params}
    return few, ATTACKS[name].cost({**params, **few})


@dataclass
class Calibrations:
    """The calibrations of a study's models, each made when it is asked for; the last are kept, with their models.

    threads: that a job will have.  clock: gives seconds.
    """

    data: DataRef
    device: torch.device
    threads: int
    clock: Clock = time.perf_counter
    found: dict[Any, Calibration | None] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)

    def of(self, model: ModelSpec, examples: int, eot_draws: int, *, given: bool) -> Calibration | None:
        """None for one that asks for a GPU on a machine without; a model that is yet to be trained is as quick as a
        trained one.  given: it is not.
        """
        key = model.key(), examples, eot_draws, given
        if key not in self.found:
            while len(self.found) >= KEPT:
                self.found.pop(next(iter(self.found)))
            with self.quiet():
                self.found[key] = unless_it_asks_for_a_gpu(lambda: self.measure(model, examples, eot_draws, given))
        return self.found[key]

    @contextlib.contextmanager
    def quiet(self) -> Any:
        """As many threads as a job has; what the model prints goes to stderr, stdout belongs to the estimate."""
        with threads_of(self.threads), contextlib.redirect_stdout(sys.stderr):
            yield

    def measure(self, spec: ModelSpec, examples: int, eot_draws: int, given: bool) -> Calibration:
        start = self.clock()
        test = load_data(self.data)
        model = build_model(spec if given else unmeasured(spec, test), test, 0)
        x = LazyImages(test.images)
        ready = make_ready(model, x, test.num_classes, self.device)
        seconds = self.clock() - start
        oracle: Oracle = Expectation(ready.model, eot_draws) if ready.replicas is None else ready.replicas.search
        most = GROUP if ready.replicas is None else (ready.replicas.search.batch or SAMPLE)
        few = as_images(x[:SAMPLE], self.device)
        size = max(1, min(examples, most, fitting(few[:1], self.device)))
        images = few.repeat(-(-size // len(few)), 1, 1, 1)[:size]
        labels = torch.from_numpy(test.y[: min(size, len(few))]).to(self.device) if given else None
        shares = None if ready.replicas is None else make_shares(ready.replicas, self.device, fork=False)
        each = threads_each() if shares is not None else self.threads
        with threads_of(each), strict_float32(), evaluating(ready.model):
            rates = rates_at(oracle, images, size, seconds=RATE_SECONDS, clock=self.clock)
            with torch.no_grad():
                answers = classes_of(oracle(images))
        shared = self.threads / each
        return Calibration(ready, rates, seconds, oracle, images, answers, labels, shared, each, self.clock)

    def epoch(self, spec: TrainSpec) -> float | None:
        """Seconds of an epoch of a training; None for a model that asks for a GPU on a machine without."""
        key = spec.model_copy(update={"seed": 0}).key()
        if key not in self.epochs:
            with self.quiet():
                found = unless_it_asks_for_a_gpu(lambda: self.train_a_little(spec))
            self.epochs[key] = math.nan if found is None else found
        return None if math.isnan(self.epochs[key]) else self.epochs[key]

    def train_a_little(self, spec: TrainSpec) -> float:
        train = load_data(spec.data, "train")
        model = build_model(unmeasured(spec.model, train), train, 0)
        options: Any = {"device": self.device, "seconds": TRIAL_SECONDS, "clock": self.clock}
        return epoch_seconds(model, LazyImages(train.images), spec.settings, **options)


def unless_it_asks_for_a_gpu(measure: Any) -> Any:
    """What it returns; None where a factory, or what the model calls, asks for a GPU on a machine without."""
    try:
        return measure()
    except Exception as error:
        if not asks_for_a_gpu(error):
            raise
        return None
