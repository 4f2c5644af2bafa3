"""The same tasks by other libraries, as they run out of the box: a function (model, x, y, budget) -> x_adv for each.

torchattacks, foolbox, adversarial-robustness-toolbox, adv-lib and pyautoattack, all from the package index.
"""

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# adv-lib imports visdom, a plotting server, for a logger that nobody here uses.
if "visdom" not in sys.modules:
    stub = types.ModuleType("visdom")
    stub.Visdom = object  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["visdom"] = stub


@dataclass(frozen=True)
class Budget:
    """What every library gets: radius in Linf (DeepFool and the minimum-norm attacks ignore it), steps, batch size."""

    eps: float
    steps: int
    step_size: float
    batch_size: int
    seed: int = 0
    classes: int = 10


Peer = Callable[[nn.Module, Tensor, Tensor, Budget], Tensor]


def in_batches(attack: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, size: int) -> Tensor:
    parts = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([attack(images, labels).detach() for images, labels in parts])


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(model, eps=budget.eps, alpha=budget.step_size, steps=budget.steps)
    return in_batches(attack, x, y, budget.batch_size)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=budget.step_size, steps=budget.steps)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    return in_batches(lambda x, y: attack(wrapped, x, y, epsilons=budget.eps)[1], x, y, budget.batch_size)


def adv_lib_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    from adv_lib.attacks import pgd_linf

    options = {"ε": budget.eps, "steps": budget.steps, "absolute_step_size": budget.step_size}
    return in_batches(lambda x, y: pgd_linf(model, x, y, **options), x, y, budget.batch_size)


def art_classifier(model: nn.Module, x: Tensor, classes: int):
    from art.estimators.classification import PyTorchClassifier

    kind = "gpu" if x.is_cuda else "cpu"
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0, 1), device_type=kind
    )


def art_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    attack = ProjectedGradientDescentPyTorch(
        art_classifier(model, x, budget.classes), eps=budget.eps, eps_step=budget.step_size, max_iter=budget.steps,
        num_random_init=1, batch_size=budget.batch_size, verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)


def reference_autoattack(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm="Linf", eps=budget.eps, version="standard", seed=budget.seed, device=x.device)
    found = attack.run_standard_evaluation(x, y, batch_size=budget.batch_size)
    return found[0] if isinstance(found, tuple) else found


def torchattacks_autoattack(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    import torchattacks

    attack = torchattacks.AutoAttack(model, norm="Linf", eps=budget.eps, n_classes=budget.classes, seed=budget.seed)
    return in_batches(attack, x, y, budget.batch_size)


def foolbox_deepfool(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    import foolbox

    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    return in_batches(lambda x, y: attack(wrapped, x, y, epsilons=None)[1], x, y, budget.batch_size)


def adv_lib_deepfool(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    from adv_lib.attacks import df

    return in_batches(lambda x, y: df(model, x, y, steps=50, norm=2), x, y, budget.batch_size)


PEERS: dict[str, dict[str, Peer]] = {
    "pgd": {
        "torchattacks": torchattacks_pgd,
        "foolbox": foolbox_pgd,
        "adv-lib": adv_lib_pgd,
        "adversarial-robustness-toolbox": art_pgd,
    },
    "autoattack": {"pyautoattack": reference_autoattack},
    "deepfool": {"foolbox": foolbox_deepfool, "adv-lib": adv_lib_deepfool},
}
