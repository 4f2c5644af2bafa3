"""The check for models that adapt to what they are asked: standard attacks take a model for one fixed function."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.checks.thresholds import CheckResult, check_result
from robustlib.model_calls import ask
from robustlib.rng import seeded

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


class Watchers:
    """Models that are watched now, by the thread that asks them: while there are any, what takes gradients is stood in
    for by what notes it. Other threads take theirs meanwhile, of which nobody is told.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watched: dict[int, list[Watched]] = {}
        self.before: list[tuple[Any, str, Any]] = []

    @contextmanager
    def watching(self, model: "Watched") -> Iterator[None]:
        with self.lock:
            if not self.watched:
                places = [(owner, name) for owner, name in TAKES_GRADIENTS if hasattr(owner, name)]
                self.before = [(owner, name, getattr(owner, name)) for owner, name in places]
                for owner, name, function in self.before:
                    setattr(owner, name, self.recording(function))
            self.watched.setdefault(threading.get_ident(), []).append(model)
        try:
            yield
        finally:
            with self.lock:
                self.watched[threading.get_ident()].remove(model)
                self.watched = {thread: models for thread, models in self.watched.items() if models}
                if not self.watched:
                    for owner, name, function in self.before:
                        setattr(owner, name, function)

    def recording(self, function: Any) -> Any:
        @wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            models = self.watched.get(threading.get_ident(), ())
            if models and not compiling():
                for model in models:
                    model.takes_gradients = True
            return function(*args, **kwargs)

        return recorded


def compiling() -> bool:
    """Whether torch.compile is at work, which takes a gradient once to see how it is computed."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torch._functorch._aot_autograd"):
            return True
        frame = frame.f_back
    return False


WATCHERS = Watchers()


class Watched:
    """A model of which is known whether it takes gradients while it answers."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.takes_gradients = False

    def __call__(self, x: Tensor) -> Tensor:
        with WATCHERS.watching(self):
            return self.model(x)


def state_of(model: nn.Module) -> State:
    """Copies of the model's parameters and buffers, on the CPU."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: t.detach().to("cpu", copy=True) for name, t in named if t.layout == torch.strided}


@torch.no_grad()
def restore_state(model: nn.Module, state: State) -> None:
    """Put back what has changed; the rest may not even be there to be written to."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and tensor.shape == state[name].shape and not same(state[name], tensor.cpu()):
            tensor.copy_(state[name])


def changed(before: State, after: State) -> list[str]:
    """Names of what is another tensor now."""
    return [name for name in {**before, **after} if not same(before.get(name), after.get(name))]


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # a NaN is itself


def test_time(model: Watched, x: Tensor, before: State, *, randomised: bool) -> CheckResult:
    """Whether the model adapts as it answers, after passes that were watched. x: some images; a few are asked again.

    before: the model's state before those passes, which it is left in.
    AutoAttack counts calls of torch.autograd.grad in a forward pass, and warns. Of nine such defences none was much
    more robust than the network inside it: Croce et al. 2022, https://arxiv.org/abs/2202.13711.
    """
    now = state_of(model.model)
    moved = changed(before, now)
    # A counter counts; what follows what is asked is made of other numbers.
    following = [name for name in moved if name not in now or now[name].is_floating_point() or now[name].is_complex()]
    value, words = 0, []
    # A randomised model whose state stays has nothing to adapt with but its noise.
    if (moved or not randomised) and depends_on_earlier(model, x[:FEW], TURNS if moved else 1, randomised=randomised):
        value = ADAPTS
        words.append("answers to the same images change with what was asked before")
    if model.takes_gradients:
        value = ADAPTS
        words.append("the forward pass takes gradients")
    if moved:
        value = max(value, CHANGES if following else 0)
        words.append(f"changed as it answered: {', '.join(moved[:5])}")
        restore_state(model.model, before)
    return check_result("test-time", value, "; ".join(words))


@torch.no_grad()
def depends_on_earlier(model: Watched, x: Tensor, turns: int, *, randomised: bool) -> bool:
    """Whether answers to these images differ once others were asked, with the same random numbers.

    Of a randomised model, which may count its passes or keep its random numbers itself, whether they differ from those
    after as many passes of the same images, where these come again from the same state.
    """
    others = 1 - x  # no image is its own negative
    if not randomised:
        return not alike(answer_after_queries(model, x, x, 0), answer_after_queries(model, x, others, turns))
    kept, found = state_of(model.model), []
    for asked in (x, others, x):
        found.append(answer_after_queries(model, x, asked, turns))
        restore_state(model.model, kept)
    after_same, after_others, again = found
    return alike(after_same, again) and not alike(after_same, after_others)


def answer_after_queries(model: Watched, x: Tensor, asked: Tensor, turns: int) -> Tensor:
    """The answer to the images after some passes of those that are asked."""
    with seeded(0, "checks/test-time", x.device):
        for _ in range(turns):
            ask(model, asked)
        return ask(model, x).float()


def alike(one: Tensor, other: Tensor) -> bool:
    """But for rounding, as in robustlib.inference.expectation.is_randomised."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
