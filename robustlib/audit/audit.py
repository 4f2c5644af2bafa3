"""The adaptive audit: what a naive evaluation says, what holds against an expert, and why the two differ."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import POSITIVE, Norm, check_range, checked_options
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.surrogate_training import train_surrogate
from robustlib.audit import attack_checks, attack_plan
from robustlib.audit.attack_plan import PlannedAttack, Target, attacking
from robustlib.audit.diagnosis import name_cause
from robustlib.audit.session import AttackSession, Trial
from robustlib.checks import gradient_checks
from robustlib.checks.evaluation_checks import above_chance, answers, eight_bit, noise
from robustlib.checks.normalisation import normalisation
from robustlib.checks.thresholds import CheckResult, check_result, overall
from robustlib.evaluation.batches import Ready, make_ready
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import as_module, device_of, each_within, evaluating, strict_float32
from robustlib.inference.predict import classes_of
from robustlib.input_checks import check_data, check_highest, check_images
from robustlib.memory import as_many_as_fit
from robustlib.norms import size
from robustlib.outcome import Outcome, Score, judge, score
from robustlib.rng import Draws, Seeding

GRADIENT_IMAGES = 64  # images of the gradient checks
DRAWS = 100  # for the score of a randomised model


@dataclass
class Audit:
    """The result of an audit. outcome: of the best attack for each example.  x_adv: its images, on the CPU.

    left_out: what could not be tried, and why.
    """

    verdict: str
    cause: str | None
    naive_robust_accuracy: float
    adaptive_robust_accuracy: float
    clean_accuracy: float
    checks: list[CheckResult]
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
    """Attack a model as a naive evaluation would, then as an expert would: yields what it tries, then the result.

    x: images as floats in [0, 1], shape (N, C, H, W).  y: classes, shape (N,).  eps: in units of x.
    queries: of each image by attacks without gradients.  pool: images to train a surrogate on, by the model's answers.
    Success counts only by the model as given, in strict float32.
    Sources: Carlini et al. 2019, https://arxiv.org/abs/1902.06705; Tramer et al. 2020, https://arxiv.org/abs/2002.08347.
    """
    highest = check_data("audit", x, y, boxed=True)
    check_range("audit", "eps", eps, POSITIVE)
    if pool is not None:
        check_images("audit's pool", pool)
    device = device or device_of(as_module("audit", model) if ready is None else ready.model, x)
    made = ready or make_ready(model, x, num_classes or highest + 1, device)
    check_highest("audit", highest, made.classes)
    x, y = x.to(device), y.to(device)

    def steps() -> Iterator[str | Audit]:
        yield from AuditRun(made, x, y, norm, eps, seed, queries, pool).run()

    yield from each_within(steps(), strict_float32, partial(evaluating, made.model), Seeding(seed, "audit", device))


class AuditRun:
    """One audit under way."""

    def __init__(
        self, ready: Ready, x: Tensor, y: Tensor, norm: Norm, eps: float, seed: int, queries: int, pool: Tensor | None
    ):
        self.x, self.y, self.eps, self.seed, self.queries = x, y, eps, seed, queries
        self.norm: Norm = norm
        self.pool = pool
        model, replicas = ready.model, ready.replicas
        self.checks = list(ready.checks)
        missing = any(f.name == "gradient" and f.note.startswith("no gradient") for f in self.checks)
        exact = model if replicas is None else replicas.exact
        search = model if replicas is None else replicas.search
        eot = attack_plan.eot_draws_needed(model, x[:16]) if replicas is None and not missing else attack_plan.EOT
        judge = None if replicas is None else replicas.exact
        self.target = Target(model, exact, search, replicas is None, not missing, ready.classes, judge, eot)
        draws = Draws(seed, torch.arange(len(x), device=x.device))
        self.session = AttackSession(exact, x, y, draws, norm=norm, eps=eps, randomised=replicas is None)
        self.clean = self.scored(x)
        self.naive, self.naive_images = self.session.correct.clone(), x
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
        self.check_gradients()
        yield from self.run_plan()
        yield "the last checks"
        self.checks.append(attack_checks.without_limit(self.target, self.x, self.y, self.session))
        yield self.conclude()

    def start(self) -> None:
        """The naive attack, what FGSM adds to it, and the same at half and at twice the radius."""
        session, target = self.session, self.target
        session.attempt("PGD", "naive", attack_plan.naive_attack(target, self.norm, self.eps))
        self.naive = session.correct.clone()
        self.naive_images = session.x_adv.clone()
        if not target.gradient:
            session.trials.clear()  # the images as they are: nothing was tried
            return
        before = session.correct.clone()
        single = attacking(partial(fgsm, norm=self.norm, eps=self.eps), target.search)
        session.attempt("FGSM", "standard", single)
        missed = session.newly_broken(before)
        self.checks.append(check_result("fgsm-beats-pgd", len(missed) / len(self.y), examples=missed.tolist()))
        self.checks.append(attack_checks.other_radii(target, session, self.naive))
        if not target.randomised:
            self.checks.append(attack_checks.convergence(target, session, self.naive))

    def check_gradients(self) -> None:
        """Compare the gradient with the loss, on images that are classified correctly."""
        rows = (self.session.share(self.x, self.y) > 0.5).nonzero().flatten()[:GRADIENT_IMAGES]
        x, y, model = self.x[rows], self.y[rows], self.target.model
        outputs = as_many_as_fit(lambda n: answers(model, self.x[:n]), min(GRADIENT_IMAGES, len(self.x)))
        one_hot = ((outputs == 0) | (outputs == 1)).all(1) & (outputs.sum(1) == 1)
        self.traits = {"labels_only": bool(one_hot.float().mean() > 0.9), "margin_gradient": False, "finer": False}
        self.traits["only_answers"] = attack_plan.is_black_box(model)
        if not self.target.gradient or len(rows) == 0:
            return
        _, slope = as_many_as_fit(lambda n: gradient_checks.margin_and_gradient(model, x[:n], y[:n]), len(x))
        alive = (slope != 0).flatten(1).any(1).float().mean()
        self.traits["margin_gradient"] = bool(alive > 0.75)
        double = attack_plan.make_form(model, double=True)
        finer = None if double is None else attack_plan.margin_gradient(double, x)
        self.traits["finer"] = finer is not None and bool((finer != 0).flatten(1).any(1).float().mean() > 0.75)
        checked = Expectation(model, 4 * self.target.eot) if self.target.randomised else model
        self.checks.append(gradient_checks.slope(checked, x, y, rows, norm=self.norm, eps=self.eps))
        self.checks.append(gradient_checks.loss_landscape(checked, x, y, rows, norm=self.norm, eps=self.eps))
        if not self.target.randomised:
            self.checks.append(gradient_checks.backward_pass(model, x, y, rows, norm=self.norm))

    def run_plan(self) -> Iterator[str]:
        target, session = self.target, self.session
        gradients = attack_plan.standard_attacks(target, self.norm, self.eps)
        for attack in gradients:
            yield attack.name
            session.attempt(attack.name, attack.remedy, attack.run, probe=attack.probe)
            if attack.remedy == "expectation":
                gap = self.naive.mean().item() - session.correct.mean().item()
                self.checks.append(check_result("randomness", gap))
        self.after_gradients = session.correct.mean().item()
        yield from self.run_all(attack_plan.bpda_attacks(target, self.x, self.norm, self.eps))
        before = session.correct.clone()
        yield from self.run_all(attack_plan.score_attacks(target, self.norm, self.eps, self.queries))
        if target.gradient and not target.randomised:
            alone = session.newly_broken(before)
            # One image of few is more than the share allowed, and no more than chance.
            share = len(alone) / len(self.y) if len(alone) > 1 else 0.0
            self.checks.append(check_result("square-beats-gradients", share, examples=alone.tolist()))
        yield from self.run_all(attack_plan.fallback_attacks(target, self.x, self.norm, self.eps, self.queries))
        yield from self.try_surrogate()

    def run_all(self, planned: Iterator[PlannedAttack]) -> Iterator[str]:
        if not len(self.session.robust_rows):
            return
        for attack in planned:
            yield attack.name
            self.session.attempt(attack.name, attack.remedy, attack.run, probe=attack.probe)

    def try_surrogate(self) -> Iterator[str]:
        if not len(self.session.robust_rows) or self.pool is None or self.norm == "L1":
            return
        yield "PGD on a surrogate"
        labeller = Expectation(self.target.model, self.target.eot) if self.target.randomised else self.target.exact
        surrogate = train_surrogate(labeller, self.pool, self.target.classes, seed=self.seed)
        budget = {"norm": self.norm, "eps": self.eps, "steps": attack_plan.STEPS, "loss": "margin"}

        def run_attack(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
            # Not Auto-PGD, which stops where the surrogate is fooled: its images must fool another network.
            return pgd(surrogate, x, y, **budget, draws=draws)

        trial = self.session.attempt("PGD on a surrogate", "surrogate", run_attack)
        if trial is not None:
            self.checks.append(check_result("surrogate", trial.broke / len(self.y) if trial.broke > 1 else 0.0))

    def conclude(self) -> Audit:
        attacked = self.scored(self.session.x_adv)
        naive = self.scored(self.naive_images) if self.target.randomised else None
        naive_accuracy = (self.naive if naive is None else naive.correct).mean().item()
        adaptive = attacked.correct.mean().item()
        if self.target.randomised:
            self.checks.append(attack_checks.fresh_draws(self.target, self.session.x_adv, self.y, adaptive, DRAWS))
            if self.target.gradient:
                self.checks.append(attack_checks.plateau(self.target, self.session, DRAWS))
        by, unknown = np.array(self.session.by), torch.full_like(self.y, -1)
        moved = size(self.session.x_adv - self.x, self.norm)
        outcome = judge(self.session.draws.index, self.y, self.clean, attacked, moved, by, unknown)
        self.checks.append(above_chance(outcome))
        model = Expectation(self.target.model, self.target.eot) if self.target.randomised else self.session.model
        self.checks.append(normalisation(model, self.x, self.y, outcome))
        if not self.target.randomised:
            self.checks.append(noise(model, self.x, self.y, outcome, self.norm, self.eps, self.seed))
            self.checks.append(eight_bit(model, self.session.x_adv, self.y, outcome))
        self.checks.append(check_result("adaptive-gap", naive_accuracy - adaptive))
        beyond = self.after_gradients - self.session.correct.mean().item() - self.session.chance(self.session.correct)
        self.checks.append(check_result("beyond-gradients", max(0.0, beyond)))
        checks = self.checks
        return Audit(
            overall(checks),
            name_cause(checks, self.session.trials, self.traits),
            naive_accuracy,
            adaptive,
            self.clean.correct.mean().item(),
            checks,
            self.session.trials,
            outcome,
            self.session.x_adv.cpu(),
            self.traits,
            attack_plan.left_out(self.target, self.norm, self.pool, self.queries),
        )
