"""Audits name what is wrong with the broken defences of the zoo, break them, and leave sound models alone."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.audit import attack_plan
from robustlib.audit.audit import Audit, audit
from robustlib.audit.explanations import CAUSES, REMEDIES
from robustlib.audit.session import AttackSession
from robustlib.checks.thresholds import LIMITS
from robustlib.datasets.load import Dataset
from robustlib.defences import DEFENCES
from robustlib.models import build
from robustlib.norms import inside
from robustlib.rng import Draws, seeded
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit
from tests.helpers import broken_defences

CPU = torch.device("cpu")
N = 100
pytestmark = pytest.mark.timeout(600)


def examine(
    model: nn.Module, test: tuple[Tensor, Tensor], train: tuple[Tensor, Tensor], eps: float, n: int = N
) -> Audit:
    x, y = test[0][:n], test[1][:n]
    pool = train[0][:600].float() / 255
    *said, found = audit(model, x, y, eps=eps, queries=300, pool=pool, num_classes=10)
    assert all(isinstance(words, str) for words in said)
    assert isinstance(found, Audit)
    assert inside(found.x_adv, x, eps, "Linf").all()
    assert {result.name for result in found.checks} <= set(LIMITS) and len(found.checks) >= 8
    assert {trial.remedy for trial in found.trials} <= {"naive", *REMEDIES}
    if not isinstance(model, broken_defences.ManyHeads):
        with torch.no_grad():
            stands = (model.eval()(found.x_adv).argmax(1) == y).float().mean().item()
        # Recomputed from the images that it hands out; a randomised model answers otherwise each time.
        assert stands == pytest.approx(found.adaptive_robust_accuracy, abs=0.08)
    return found


@pytest.mark.parametrize("name", broken_defences.ZOO)
def test_broken_defences_are_named_and_broken(name: str, net: nn.Module, test, train):
    cause, make = broken_defences.ZOO[name]
    found = examine(make(net).eval(), test, train, 0.2)
    assert (found.verdict, found.cause) == ("fail", cause)
    assert found.naive_robust_accuracy > 0.5
    assert found.adaptive_robust_accuracy < 0.4 * found.naive_robust_accuracy


@pytest.fixture(scope="module")
def trained(train, digits: dict[str, Dataset]):
    facts = digits["train"]

    def make(objective: str, attack: dict[str, float], epochs: int, dropout: float = 0.0) -> nn.Module:
        with seeded(0, "weights", CPU):
            model = build(
                arch="convnet3", in_channels=1, num_classes=10, image_size=(8, 8),
                normalize=(facts.mean, facts.std), options={"dropout": dropout},
            )  # fmt: skip
        settings = TrainSettings(
            objective=objective, attack=attack, epochs=epochs, learning_rate=0.05, validation_steps=1,
            validation_examples=50,
        )  # fmt: skip
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)  # last bits of a training depend on it, and tests before this one may have set it
            for _ in fit(model, train[0], train[1], settings, seed=0, device=CPU):
                pass
        finally:
            torch.set_num_threads(threads)
        return model.eval()

    return make


def passes(found: Audit) -> None:
    assert found.verdict != "fail" and found.cause is None, found.checks
    assert found.naive_robust_accuracy - found.adaptive_robust_accuracy <= 0.15


def test_a_plain_network_passes(net: nn.Module, test, train):
    passes(examine(net, test, train, 0.08))


def test_a_plain_network_that_falls_whole_passes(net: nn.Module, test, train):
    found = examine(net, test, train, 0.25)
    passes(found)
    assert found.adaptive_robust_accuracy == 0


def test_an_adversarially_trained_network_passes(trained, test, train):
    robust = trained("pgd", {"eps": 0.15, "steps": 5}, 10)
    found = examine(robust, test, train, 0.15)
    passes(found)
    assert found.adaptive_robust_accuracy > 0.3
    smooth = DEFENCES["smoothing"](robust, sigma=0.1, draws=2)
    found = examine(smooth.eval(), test, train, 0.1, n=40)
    passes(found)
    assert found.adaptive_robust_accuracy > 0.3


def test_a_network_trained_with_dropout_passes(trained, test, train):
    passes(examine(trained("standard", {}, 8, dropout=0.4), test, train, 0.08))


@pytest.mark.slow
def test_an_untrained_network_is_none(test, train, digits):
    with seeded(3, "weights", CPU):
        model = build(arch="convnet3", in_channels=1, num_classes=10, image_size=(8, 8))
    found = examine(model, test, train, 0.05)
    assert (found.verdict, found.cause) == ("fail", "untrained")


def test_a_layer_that_stays_in_training_mode_is_named(net: nn.Module, test, train):
    model = broken_defences.Stays(net)
    found = examine(model, test, train, 0.05)
    assert (found.verdict, found.cause) == ("fail", "training-mode")


def test_the_same_audit_gives_the_same_numbers(net: nn.Module, test, train):
    first, second = (examine(broken_defences.rounded(net), test, train, 0.2, n=40) for _ in range(2))
    assert torch.equal(first.x_adv, second.x_adv) and first.checks == second.checks


def test_every_cause_has_words(net: nn.Module):
    assert {cause for cause, _ in broken_defences.ZOO.values()} < set(CAUSES)
    assert all(why.endswith(".") and mend.endswith(".") for why, mend in CAUSES.values())


class Coin(nn.Module):
    """Class 1 with the chance that the first pixel is."""

    def forward(self, x: Tensor) -> Tensor:
        right = torch.rand(len(x)) < x[:, 0, 0, 0]
        return torch.stack([1.0 - right.float(), right.float()], 1)


def test_attacks_that_do_nothing_lower_no_randomised_model():
    """Fifteen of them: kept by the lucky share that each was chosen by, 0.7 would end as 0.55."""
    x, y = torch.full((100, 1, 2, 2), 0.7), torch.ones(100, dtype=torch.long)
    torch.manual_seed(0)
    session = AttackSession(Coin(), x, y, Draws(0, torch.arange(100)), norm="Linf", eps=0.65, randomised=True)
    trials = [session.attempt(str(n), "standard", lambda x, y, draws: x) for n in range(15)]
    assert all(abs(trial.robust_accuracy - 0.7) < 0.04 for trial in trials if trial)  # five standard errors
    assert sum(trial.broke for trial in trials if trial) <= 15  # of 1,500
    before = session.correct.clone()
    lower = session.attempt("lower", "standard", lambda x, y, draws: x - 0.6)
    assert lower is not None and lower.broke > 90 and abs(lower.robust_accuracy - 0.1) < 0.02
    assert len(session.newly_broken(before)) > 95
    assert session.chance(session.correct) == pytest.approx(3 * (2 * 0.09 / (100 * 32)) ** 0.5, rel=0.1)


def test_what_its_queries_do_not_bring_to_a_step_is_left_out():
    """Half of a randomised model's queries go to each of two draws: too few for NES, and for HopSkipJump."""
    target = attack_plan.Target(nn.Identity(), nn.Identity(), nn.Identity(), True, True, 10, eot=2)
    x = torch.rand(4, 1, 8, 8)
    for queries, tried in ((60, []), (80, ["HopSkipJump"]), (120, ["NES", "HopSkipJump"])):
        planned = attack_plan.fallback_attacks(target, x, "Linf", 0.1, queries)
        assert [words for words, *_ in planned if not words.startswith("Auto-PGD")] == tried
        said = dict(attack_plan.left_out(target, "Linf", x, queries))
        assert set(said) == {"NES", "HopSkipJump"} - set(tried)
        assert all(why == f"{queries // 2} queries do not bring it to a step" for why in said.values())
