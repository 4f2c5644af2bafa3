"""The one training loop. It yields after every epoch, with all that is needed to go on from there."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import check_arguments, checked_options
from robustlib.attacks.pgd import pgd
from robustlib.datasets.lazy_images import ImageSet
from robustlib.inference.model_modes import (
    as_images,
    as_module,
    autocast,
    evaluating,
    into_mode,
    layout,
    moved,
    strict_float32,
)
from robustlib.inference.predict import correct
from robustlib.input_checks import check_data
from robustlib.memory import out_of_memory
from robustlib.model_calls import ask
from robustlib.names import unknown
from robustlib.number_text import counted
from robustlib.outcome import check_classes
from robustlib.rng import Draws, generator, seeded, stream_key
from robustlib.settings import BEYOND_HALF, TrainSettings
from robustlib.training import OBJECTIVES
from robustlib.training.augment import augment
from robustlib.training.copy_updates import TrackingCopy, tracking_copy
from robustlib.training.objectives import attack_of

VALIDATION_BATCH = 250
SAMPLE = 64  # images with which a search copy is compared with the model


class TrainingDiverged(ValueError):
    """The loss became NaN or infinite: going on would only waste time."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave. Accuracies on the validation examples, as fractions; attacked means under PGD.

    search: in which form the network was attacked, in words.
    """

    epoch: int
    loss: float
    learning_rate: float
    clean_accuracy: float
    attacked_accuracy: float
    seconds: float
    search: str = ""


@dataclass
class Training:
    """A training run between two epochs. `state` holds tensors and plain numbers only, so that it loads safely."""

    model: nn.Module
    history: list[Epoch]
    state: dict[str, Any]
    best: int

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: the last epoch's or the best one's, as the settings say."""
        return self.state["kept"]


def split(n: int, settings: TrainSettings, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to validate on: disjoint, and the same for every run with this seed."""
    order = torch.randperm(n, generator=generator(seed, "split"))
    held_out = max(1, round(n * settings.validation))
    if held_out > n - 2:
        raise ValueError(
            f"validation {settings.validation:g} of {counted(n, 'image')} leaves fewer than two to train on"
        )
    train, validation = order[held_out:], order[:held_out]
    train = train if settings.examples == "all" else train[: settings.examples]
    return train, validation[: settings.validation_examples]


def learning_rates(settings: TrainSettings, steps: int) -> list[float]:
    """The learning rate of every step of the run."""
    peak = settings.learning_rate or (0.1 if settings.optimizer == "sgd" else 1e-3)
    match settings.schedule:
        case "constant":
            return [peak] * steps
        case "cosine":
            return [peak * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
        case "onecycle":
            # Up over the first 30 % and down to zero, both straight: Smith 2018, https://arxiv.org/abs/1803.09820.
            top = max(1, round(0.3 * steps))
            return [peak * min((step + 1) / top, (steps - step) / (steps - top + 1)) for step in range(steps)]


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=0.0, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=0.0,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


@checked_options
def fit(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device,
    state: dict[str, Any] | None = None,
) -> Iterator[Training]:
    """Train the model, yielding after every epoch.

    x: images, uint8, shape (N, C, H, W), or decoded as they are needed.  y: classes, shape (N,).
    state: that of an earlier run with the same arguments, which is taken up where it stopped; on the CPU
    the weights then come out the same to the last bit.
    Raises TrainingDiverged when the loss is no longer a number.
    """
    highest = check_data("fit", x, y)
    check_attack(settings)
    with evaluating(as_module("fit", model)):
        into_mode(model, training=True)  # before anything is done, if it cannot be
    model = fitting_layout(moved(model, device), x[:2])
    with evaluating(model), strict_float32():
        check_classes(model, as_images(x[:2], device, layout(model)), highest + 1)
    # Chosen before a state is loaded: a run that is taken up again must choose as the first one did.
    search = tracking_copy(model, as_images(x[:SAMPLE], device, layout(model)))
    optimizer = make_optimizer(model, settings)
    train, validation = split(len(x), settings, seed)
    steps = math.ceil(len(train) / settings.batch_size)
    rates = learning_rates(settings, steps * settings.epochs)
    history: list[Epoch] = []
    kept, best = {}, -1
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = [Epoch(**row) for row in state["history"]]
        kept, best = state["kept"], state["best"]
    for epoch in range(len(history), settings.epochs):
        start = time.perf_counter()
        rates_now = rates[epoch * steps : (epoch + 1) * steps]
        mode = "float32, as given" if search is None else search.choose()
        with seeded(seed, f"epoch/{epoch}", device):
            stream = stream_key(seed, f"epoch/{epoch}")
            loss = run_epoch(model, x, y, train, optimizer, rates_now, settings, stream, search)
            clean, attacked = validate(model, x[validation], y[validation], settings, seed, device, search)
        seconds = time.perf_counter() - start
        mode += BEYOND_HALF if search is not None and search.overflows else ""
        history.append(Epoch(epoch, loss, max(rates_now), clean, attacked, seconds, mode))
        if settings.keep == "last" or best < 0 or merit(history[-1], settings) > merit(history[best], settings):
            kept, best = copy.deepcopy({k: v.cpu().contiguous() for k, v in model.state_dict().items()}), epoch
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": [asdict(row) for row in history],
            "kept": kept,
            "best": best,
        }
        yield Training(model, list(history), state, best)


def check_attack(settings: TrainSettings) -> None:
    """Raises ValueError for an objective that there is not, or options that its attack does not take."""
    if settings.objective not in OBJECTIVES:
        raise ValueError(unknown("objective", settings.objective, OBJECTIVES))
    if (attack := attack_of(OBJECTIVES[settings.objective])) is not None:
        check_arguments(f"training on {settings.objective}", attack.options, settings.attack)


@torch.no_grad()
def fitting_layout(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with its convolutions channels-last, which is the quicker layout, if it takes such images."""
    before = layout(model)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try:
        with evaluating(model):
            ask(model, as_images(x, next(model.parameters()).device, torch.channels_last))
    except RuntimeError as error:  # a view of what is not contiguous, say
        if out_of_memory(error):
            raise
        model = model.to(memory_format=before)  # pyright: ignore[reportCallIssue]
    return model


def merit(epoch: Epoch, settings: TrainSettings) -> float:
    """What "best" means: accuracy under attack for a network trained on attacks, clean accuracy for others."""
    return epoch.clean_accuracy if settings.objective == "standard" else epoch.attacked_accuracy


def run_epoch(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    train: Tensor,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    settings: TrainSettings,
    seed: int,
    search: TrackingCopy | None,
) -> float:
    """One pass over the training examples in a fresh order; the mean loss."""
    device = next(model.parameters()).device
    objective, memory_format = OBJECTIVES[settings.objective], layout(model)
    order = train[torch.randperm(len(train), generator=generator(seed, "order"))]
    total = torch.zeros((), device=device)
    into_mode(model, training=True)
    # Batches of near-equal size: a last batch of one image would break BatchNorm.
    for chosen, rate in zip(order.tensor_split(len(rates)), rates, strict=True):
        draws = Draws(seed, chosen.to(device))
        batch = augment(as_images(x[chosen], device, memory_format), draws, crop=settings.crop, flip=settings.flip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with autocast(device, settings.precision):
            loss = objective(model, batch, y[chosen].to(device), draws=draws, search=search, **settings.attack)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(chosen)
    mean = total.item() / len(order)
    if not math.isfinite(mean):
        raise TrainingDiverged(
            f"the training loss became {mean} at a learning rate of up to {max(rates):g}: try a smaller learning_rate"
        )
    return mean


def validate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: TrainSettings,
    seed: int,
    device: torch.device,
    search: TrackingCopy | None = None,
) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD of several steps: shows catastrophic overfitting where there is one."""
    clean = attacked = 0
    memory_format, copy_ = layout(model), model if search is None else search()
    with evaluating(model), strict_float32():
        for chosen in torch.arange(len(x)).split(VALIDATION_BATCH):
            batch, labels = as_images(x[chosen], device, memory_format), y[chosen].to(device)
            x_adv = pgd(
                copy_,
                batch,
                labels,
                norm=settings.validation_norm,
                eps=settings.validation_eps,
                steps=settings.validation_steps,
                draws=Draws(seed, chosen.to(device)),
            )
            clean_correct = correct(model, batch, labels)
            clean += int(clean_correct.sum())
            attacked += int((clean_correct & correct(model, x_adv, labels)).sum())
    return clean / len(x), attacked / len(x)
