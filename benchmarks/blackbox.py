"""HopSkipJump and SPSA against other libraries at equal queries, on a network trained on the digits, in one process.

A peer runs with its own settings and its queries are counted by the network; ours gets as many as the peer spent.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.datasets import load
from robustlib.evaluation.batches import evaluate_batches
from robustlib.models import build
from robustlib.norms import size
from robustlib.outcome import join
from robustlib.rng import seeded
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

EPS = 0.1  # of SPSA, Linf
Row = tuple[float, float, float, float]


class Counted(nn.Module):
    """A network that counts the images it is shown."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.shown = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        return self.model(x.float())  # ART asks in float64


def network(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    train, test = load.load("digits", "train"), load.load("digits", "test")
    with seeded(seed, "weights", torch.device("cpu")):
        model = build(
            arch="convnet3", in_channels=1, num_classes=10, image_size=(8, 8), normalize=(train.mean, train.std)
        )
    settings = TrainSettings(epochs=8, learning_rate=0.05, validation_steps=1, validation_examples=50)
    for _ in fit(
        model, torch.from_numpy(train.x), torch.from_numpy(train.y), settings, seed=seed, device=torch.device("cpu")
    ):
        pass
    return model.eval(), torch.from_numpy(test.x).float() / 255, torch.from_numpy(test.y)


def foolbox_hopskipjump(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, seed: int) -> Tensor:
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack
    from foolbox.models.pytorch import PyTorchModel

    torch.manual_seed(seed)
    attack = HopSkipJumpAttack(steps=6, constraint="l2" if norm == "L2" else "linf")
    return attack(PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)[1].detach()


def art_hopskipjump(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, seed: int) -> Tensor:
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import PyTorchClassifier

    np.random.seed(seed)
    shape = tuple(x.shape[1:])
    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu")
    attack = HopSkipJump(wrapped, norm=2 if norm == "L2" else np.inf, max_iter=6, verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def torchattacks_spsa(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, seed: int) -> Tensor:
    import torchattacks

    torch.manual_seed(seed)
    return torchattacks.SPSA(model, eps=EPS, nb_iter=5, nb_sample=128).__call__(x, y).detach()


def theirs(attack: Callable[..., Tensor], model: nn.Module, x: Tensor, y: Tensor, norm: Norm, seed: int) -> Row:
    counted = Counted(model).eval()
    start = time.perf_counter()
    found = attack(counted, x, y, norm, seed)
    return row(model, x, y, found, norm, counted.shown / len(x), time.perf_counter() - start)


def ours(attack: str, queries: int, model: nn.Module, x: Tensor, y: Tensor, norm: Norm, seed: int) -> Row:
    """By the whole evaluation: the search copy made, attack, verdicts, budget checks."""
    eps = EPS if attack == "spsa" else None
    options: dict[str, Any] = {"norm": norm, "queries": queries} | ({} if eps is None else {"eps": eps})
    start = time.perf_counter()
    named = [(attack, partial(ATTACKS[attack], **options))]
    batches = list(evaluate_batches(model, x, y, named, norm=norm, eps=eps, seed=seed, num_classes=10))
    seconds = time.perf_counter() - start
    found = torch.cat([batch.x_adv for batch in batches])
    used = join([batch.outcome for batch in batches]).queries
    return row(model, x, y, found, norm, used.mean().item(), seconds)


def row(model: nn.Module, x: Tensor, y: Tensor, found: Tensor, norm: Norm, queries: float, seconds: float) -> Row:
    """Median distance of what the network misclassifies (infinite where nothing was), accuracy, queries, seconds."""
    with torch.no_grad():
        fell = model(found).argmax(1) != y
    distance = torch.where(fell, size(found - x, norm), torch.inf).median().item()
    return distance, 1 - fell.float().mean().item(), queries, seconds


@click.command()
@click.option("--examples", default=200, show_default=True)
@click.option("--seeds", default=3, show_default=True)
def main(examples: int, seeds: int) -> None:
    """Print, for each peer and for ours at its queries: median distance or accuracy, queries an image, seconds."""
    tasks: list[tuple[str, Norm, Callable[..., Tensor], str]] = [
        (f"{name} HopSkipJump", norm, peer, "hopskipjump")
        for norm in ("L2", "Linf")
        for name, peer in (("foolbox", foolbox_hopskipjump), ("ART", art_hopskipjump))
    ]
    tasks.append(("torchattacks SPSA", "Linf", torchattacks_spsa, "spsa"))
    networks = [network(seed) for seed in range(seeds)]
    for name, norm, peer, attack in tasks:
        rows: dict[str, list[Row]] = {name: [], "  robustq": []}
        for seed, (model, x, y) in enumerate(networks):
            with torch.no_grad():
                right = (model(x).argmax(1) == y).nonzero().flatten()[:examples]
            rows[name].append(theirs(peer, model, x[right], y[right], norm, seed))
            queries = int(rows[name][-1][2])
            rows["  robustq"].append(ours(attack, queries, model, x[right], y[right], norm, seed))
        for label, found in rows.items():
            distance, accuracy, used, seconds = (median(column) for column in zip(*found, strict=True))
            click.echo(
                f"{label:20} {norm:4} distance {distance:.4f}  accuracy {accuracy:.3f}  queries {used:.0f}  "
                f"{seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
