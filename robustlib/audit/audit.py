"""The adaptive audit: what a naive evaluation says, what holds against an expert, and why the two differ."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, checked_options
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.surrogate_training import train_surrogate
from robustlib.audit import attack_checks, attack_plan
from robustlib.audit.attack_plan import Move, Target, calling
from robustlib.audit.diagnosis import name_cause
from robustlib.audit.session import Bout, Trial
from robustlib.checks import gradient_checks
from robustlib.checks.evaluation_checks import above_chance, answers, eight_bit, noise
from robustlib.checks.normalisation import normalisation
from robustlib.checks.thresholds import Finding, find, overall
from robustlib.evaluation.evaluate import Ready, make_ready
from robustlib.inference.confirm import classes_of
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import as_module, device_of, each_within, evaluating, strict_float32
from robustlib.input_checks import check_data, check_highest, check_images
from robustlib.memory import as_many_as_fit
from robustlib.norms import size
from robustlib.outcome import Outcome, Score, judge, score
from robustlib.rng import Draws, Seeding

LOOKED_AT = 64  # images that the gradient checks look at
DRAWS = 100  # by which a randomised model is scored


@dataclass
class Audit:
    """What an audit found. outcome: of the best attack for each example.  x_adv: its images, on the CPU.

    left_out: what could not be tried, and why.
    """

    verdict: str
    cause: str | None
    naive_robust_accuracy: float
    adaptive_robust_accuracy: float
    clean_accuracy: float
    findings: list[Finding]
    trials: list[Trial]
    outcome: Outcome
    x_adv: Tensor
    traits: dict[str, bool] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@checked_options
def audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    seed: int = 0,
    queries: int = 1000,
    pool: Tensor | None = None,
    num_classes: int | None = None,
    device: torch.device | None = None,
    ready: Ready | None = None,
) -> Iterator[str | Audit]:
    """Attack a model as a naive evaluation would, then as an expert would: says what it tries, and what came of it.

    x: images as floats in [0, 1], shape (N, C, H, W).  y: classes, shape (N,).  eps: in units of x.
    queries: of each image by attacks without gradients.  pool: images to train a surrogate on, by the model's answers.
    Success counts only by the model as given, in strict float32.
    Sources: Carlini et al. 2019, https://arxiv.org/abs/1902.06705; Tramer et al. 2020, https://arxiv.org/abs/2002.08347.
    """
    highest = check_data("audit", x, y, boxed=True)
    if not eps > 0:
        raise ValueError(f"audit: expected eps above 0, got {eps}")
    if pool is not None:
        check_images("audit's pool", pool)
    device = device or device_of(as_module("audit", model) if ready is None else ready.model, x)
    made = ready or make_ready(model, x, num_classes or highest + 1, device)
    check_highest("audit", highest, made.classes)
    x, y = x.to(device), y.to(device)

    def steps() -> Iterator[str | Audit]:
        yield from Examination(made, x, y, norm, eps, seed, queries, pool).run()

    yield from each_within(steps(), strict_float32, partial(evaluating, made.model), Seeding(seed, "audit", device))


class Examination:
    """One audit under way."""

    def __init__(
        self, ready: Ready, x: Tensor, y: Tensor, norm: Norm, eps: float, seed: int, queries: int, pool: Tensor | None
    ):
        self.x, self.y, self.eps, self.seed, self.queries = x, y, eps, seed, queries
        self.norm: Norm = norm
        self.pool = pool
        model, engines = ready.model, ready.engines
        self.findings = list(ready.findings)
        missing = any(f.name == "gradient" and f.note.startswith("no gradient") for f in self.findings)
        exact = model if engines is None else engines.exact
        search = model if engines is None else engines.search
        eot = attack_plan.draws_needed(model, x[:16]) if engines is None and not missing else attack_plan.EOT
        self.target = Target(model, exact, search, engines is None, not missing, ready.classes, eot)
        draws = Draws(seed, torch.arange(len(x), device=x.device))
        self.bout = Bout(exact, x, y, draws, norm=norm, eps=eps, randomised=engines is None)
        self.clean = self.scored(x)
        self.naive, self.naive_images = self.bout.correct.clone(), x
        self.after_gradients = 1.0
        self.traits: dict[str, bool] = {}

    def scored(self, x: Tensor) -> Score:
        if self.target.randomised:
            return score(self.target.model, x, self.y, DRAWS)
        with torch.no_grad():
            return Score.fixed(classes_of(self.target.exact(x)), self.y)

    def run(self) -> Iterator[str | Audit]:
        yield "PGD, as a naive evaluation would"
        self.start()
        self.look_at_gradients()
        yield from self.try_all()
        yield "the last checks"
        self.findings.append(attack_checks.without_limit(self.target, self.x, self.y, self.bout))
        yield self.conclude()

    def start(self) -> None:
        """The naive attack, what FGSM adds to it, and the same at half and at twice the radius."""
        bout, target = self.bout, self.target
        bout.attempt("PGD", "naive", attack_plan.naive(target, self.norm, self.eps))
        self.naive = bout.correct.clone()
        self.naive_images = bout.x_adv.clone()
        if not target.gradient:
            bout.trials.clear()  # the images as they are: nothing was tried
            return
        before = bout.correct.clone()
        single = calling(partial(fgsm, norm=self.norm, eps=self.eps), target.search)
        bout.attempt("FGSM", "standard", single)
        missed = bout.lost(before)
        self.findings.append(find("fgsm-beats-pgd", len(missed) / len(self.y), examples=missed.tolist()))
        self.findings.append(attack_checks.other_radii(target, bout, self.naive))
        if not target.randomised:
            self.findings.append(attack_checks.convergence(target, bout, self.naive))

    def look_at_gradients(self) -> None:
        """Whether the gradient says what the loss does, on images that are classified correctly."""
        rows = (self.bout.share(self.x, self.y) > 0.5).nonzero().flatten()[:LOOKED_AT]
        x, y, model = self.x[rows], self.y[rows], self.target.model
        said = as_many_as_fit(lambda n: answers(model, self.x[:n]), min(LOOKED_AT, len(self.x)))
        one_hot = ((said == 0) | (said == 1)).all(1) & (said.sum(1) == 1)
        self.traits = {"labels_only": bool(one_hot.float().mean() > 0.9), "margin_gradient": False, "finer": False}
        self.traits["only_answers"] = attack_plan.only_answers(model)
        if not self.target.gradient or len(rows) == 0:
            return
        _, slope = as_many_as_fit(lambda n: gradient_checks.margin_and_slope(model, x[:n], y[:n]), len(x))
        alive = (slope != 0).flatten(1).any(1).float().mean()
        self.traits["margin_gradient"] = bool(alive > 0.75)
        double = attack_plan.made(model, double=True)
        finer = None if double is None else attack_plan.slope_of(double, x)
        self.traits["finer"] = finer is not None and bool((finer != 0).flatten(1).any(1).float().mean() > 0.75)
        looked = Expectation(model, 4 * self.target.eot) if self.target.randomised else model
        self.findings.append(gradient_checks.slope(looked, x, y, rows, norm=self.norm, eps=self.eps))
        self.findings.append(gradient_checks.loss_landscape(looked, x, y, rows, norm=self.norm, eps=self.eps))
        if not self.target.randomised:
            self.findings.append(gradient_checks.backward_pass(model, x, y, rows, norm=self.norm))

    def try_all(self) -> Iterator[str]:
        target, bout = self.target, self.bout
        gradients = attack_plan.standard(target, self.norm, self.eps)
        for words, remedy, strike, probe in gradients:
            yield words
            bout.attempt(words, remedy, strike, probe=probe)
            if remedy == "expectation":
                gap = self.naive.mean().item() - bout.correct.mean().item()
                self.findings.append(find("randomness", gap))
        self.after_gradients = bout.correct.mean().item()
        yield from self.strike_all(attack_plan.behind(target, self.x, self.norm, self.eps))
        before = bout.correct.clone()
        yield from self.strike_all(attack_plan.by_scores(target, self.norm, self.eps, self.queries))
        if target.gradient and not target.randomised:
            alone = bout.lost(before)
            # One image of few is more than the share allowed, and no more than chance.
            share = len(alone) / len(self.y) if len(alone) > 1 else 0.0
            self.findings.append(find("square-beats-gradients", share, examples=alone.tolist()))
        yield from self.strike_all(attack_plan.last_resorts(target, self.x, self.norm, self.eps, self.queries))
        yield from self.try_surrogate()

    def strike_all(self, moves: Iterator[Move]) -> Iterator[str]:
        if not len(self.bout.standing):
            return
        for words, remedy, strike, probe in moves:
            yield words
            self.bout.attempt(words, remedy, strike, probe=probe)

    def try_surrogate(self) -> Iterator[str]:
        standing = len(self.bout.standing)
        if not standing or self.pool is None or self.norm == "L1":
            return
        yield "PGD on a surrogate"
        asked = Expectation(self.target.model, self.target.eot) if self.target.randomised else self.target.exact
        stand_in = train_surrogate(asked, self.pool, self.target.classes, seed=self.seed)
        budget = {"norm": self.norm, "eps": self.eps, "steps": attack_plan.STEPS, "loss": "margin"}

        def strike(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
            # Not Auto-PGD, which stops where the surrogate is fooled: its images must fool another network.
            return pgd(stand_in, x, y, **budget, draws=draws)

        trial = self.bout.attempt("PGD on a surrogate", "surrogate", strike)
        if trial is not None:
            self.findings.append(find("surrogate", trial.broke / len(self.y) if trial.broke > 1 else 0.0))

    def conclude(self) -> Audit:
        attacked = self.scored(self.bout.x_adv)
        naive = self.scored(self.naive_images) if self.target.randomised else None
        naive_accuracy = (self.naive if naive is None else naive.correct).mean().item()
        adaptive = attacked.correct.mean().item()
        if self.target.randomised:
            self.findings.append(attack_checks.fresh_draws(self.target, self.bout.x_adv, self.y, adaptive, DRAWS))
            if self.target.gradient:
                self.findings.append(attack_checks.plateau(self.target, self.bout, DRAWS))
        by, unknown = np.array(self.bout.by), torch.full_like(self.y, -1)
        moved = size(self.bout.x_adv - self.x, self.norm)
        outcome = judge(self.bout.draws.index, self.y, self.clean, attacked, moved, by, unknown)
        self.findings.append(above_chance(outcome))
        asked = Expectation(self.target.model, self.target.eot) if self.target.randomised else self.bout.judge
        self.findings.append(normalisation(asked, self.x, self.y, outcome))
        if not self.target.randomised:
            bare = self.bout.judge
            self.findings.append(noise(bare, self.x, self.y, outcome, self.norm, self.eps, self.seed))
            self.findings.append(eight_bit(bare, self.bout.x_adv, self.y, outcome))
        self.findings.append(find("adaptive-gap", naive_accuracy - adaptive))
        beyond = self.after_gradients - self.bout.correct.mean().item() - self.bout.chance(self.bout.correct)
        self.findings.append(find("beyond-gradients", max(0.0, beyond)))
        findings = self.findings
        return Audit(
            overall(findings),
            name_cause(findings, self.bout.trials, self.traits),
            naive_accuracy,
            adaptive,
            self.clean.correct.mean().item(),
            findings,
            self.bout.trials,
            outcome,
            self.bout.x_adv.cpu(),
            self.traits,
            attack_plan.left_out(self.target, self.norm, self.pool, self.queries),
        )
