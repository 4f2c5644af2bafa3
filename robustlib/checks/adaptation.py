"""Whether a model adapts to what it is asked: standard attacks take it for one function, which it is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.checks.limits import Finding, find
from robustlib.draws import seeded

FEW = 16  # images that are asked again
TURNS = 10  # times that others are asked in between, where the model's state changes
ADAPTS, CHANGES = 2, 1
# All that gradients are taken by; the second is what the first two, and torch.func, come to, by whatever name a model
# knows them, and the last is for those taken going forward.
TAKES_GRADIENTS: list[tuple[Any, str]] = [
    (torch.autograd, "grad"),
    (torch.autograd, "_engine_run_backward"),
    (torch.autograd, "backward"),
    (torch.Tensor, "backward"),
    (torch.autograd.forward_ad, "make_dual"),
]
State = dict[str, Tensor]


class Watched:
    """A model of which is known whether it takes gradients while it answers."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.takes_gradients = False

    def __call__(self, x: Tensor) -> Tensor:
        with self.watching():
            return self.model(x)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What takes gradients is stood in for by what notes it, and put back after."""
        places = [(owner, name) for owner, name in TAKES_GRADIENTS if hasattr(owner, name)]
        before = [getattr(owner, name) for owner, name in places]
        try:
            for (owner, name), function in zip(places, before, strict=True):
                setattr(owner, name, self.noting(function))
            yield
        finally:
            for (owner, name), function in zip(places, before, strict=True):
                setattr(owner, name, function)

    def noting(self, function: Any) -> Any:
        @wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.takes_gradients = True
            return function(*args, **kwargs)

        return noted


def state_of(model: nn.Module) -> State:
    """Copies of the model's parameters and buffers, on the CPU."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: t.detach().to("cpu", copy=True) for name, t in named if t.layout == torch.strided}


@torch.no_grad()
def put_back(model: nn.Module, state: State) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and tensor.shape == state[name].shape:
            tensor.copy_(state[name])


def changed(before: State, after: State) -> list[str]:
    """Names of what is another tensor now."""
    return [name for name in {**before, **after} if not same(before.get(name), after.get(name))]


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # a NaN is itself


def test_time(model: Watched, x: Tensor, before: State, *, randomised: bool) -> Finding:
    """Whether the model adapts as it answers, after passes that were watched. x: some images; a few are asked again.

    before: the model's state before those passes, which it is left in.
    AutoAttack counts calls of torch.autograd.grad in a forward pass, and warns. Of nine such defences none was much
    more robust than the network inside it: Croce et al. 2022, https://arxiv.org/abs/2202.13711.
    """
    moved = changed(before, state_of(model.model))
    value, words = 0, []
    # A randomised model whose state stays has nothing to adapt with but its noise.
    if (moved or not randomised) and follows(model, x[:FEW], TURNS if moved else 1, randomised=randomised):
        value = ADAPTS
        words.append("answers to the same images change with what was asked before")
    if model.takes_gradients:
        value = ADAPTS
        words.append("the forward pass takes gradients")
    if moved:
        value = max(value, CHANGES)
        words.append(f"changed as it answered: {', '.join(moved[:5])}")
        put_back(model.model, before)
    return find("test-time", value, "; ".join(words))


@torch.no_grad()
def follows(model: Watched, x: Tensor, turns: int, *, randomised: bool) -> bool:
    """Whether answers to these images differ once others were asked, with the same random numbers.

    Of a randomised model, whose numbers may be its own, only where they come back with its state.
    """

    def answer() -> Tensor:
        with seeded(0, "checks/test-time", x.device):
            return model(x).float()

    kept = state_of(model.model) if randomised else {}
    first = answer()
    for _ in range(turns):
        model(1 - x)  # no image is its own negative
    if alike(first, answer()):
        return False
    if not randomised:
        return True
    put_back(model.model, kept)
    return alike(first, answer())


def alike(one: Tensor, other: Tensor) -> bool:
    """But for rounding, as in robustlib.models.layers.is_randomised."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
