"""Differentiable forms of a model, as an expert attacks them: what hides the gradient is replaced going backwards.

Nothing here knows a defence by name. A form rests on what a model does to its images and with its scores; whatever is
found on a form counts only where the model itself, as given, is fooled.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustlib.inference.compiler_stance import uncompiled
from robustlib.inference.model_modes import copied
from robustlib.model_calls import ask, hand, rows_of

FITS = 0.8  # share of a tensor's variance that a linear surrogate must explain to replace what made it
AGREES = 0.98  # share of images on which hidden scores must name the class that the model answers

# Flat functions, which a straight-through estimator replaces going backwards: by the identity, or by a clipped one.
STEPS = {
    torch.round, torch.floor, torch.ceil, torch.trunc, torch.fix, torch.Tensor.round, torch.Tensor.floor,
    torch.Tensor.ceil, torch.Tensor.trunc, torch.Tensor.fix,
}  # fmt: skip
SIGNS = {torch.sign, torch.Tensor.sign, torch.sgn, torch.Tensor.sgn}
QUOTIENTS = {torch.div, torch.Tensor.div, torch.divide, torch.Tensor.divide}  # rounded, where a mode says so
FLOORED = {torch.floor_divide, torch.Tensor.floor_divide, torch.Tensor.__floordiv__}
# What a step takes off: with the step as the identity, nothing of the gradient.
REMAINDERS = {
    torch.remainder, torch.Tensor.remainder, torch.fmod, torch.Tensor.fmod, torch.Tensor.__mod__, torch.frac,
    torch.Tensor.frac,
}  # fmt: skip
CUTS = {torch.Tensor.detach, torch.detach}
LEAVES = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist, torch.Tensor.item}


class StraightThrough(TorchFunctionMode):
    """A straight-through estimator: going backwards a step is the identity, a rounded quotient the quotient, a sign the
    identity clipped to [-1, 1], a detached tensor attached.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LEAVES:  # what was to be detached, and is not, would not go
            with torch._C.DisableTorchFunction():
                return func(args[0].detach(), *args[1:], **(kwargs or {}))
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor) or not source.is_floating_point() or not source.requires_grad:
            return out
        with torch._C.DisableTorchFunction():
            if func in FLOORED or (func in QUOTIENTS and kwargs.get("rounding_mode") is not None):
                quotient = source / (args[1] if len(args) > 1 else kwargs["other"])
                return quotient + (out - quotient).detach()
            if func in REMAINDERS:
                return out.detach()
            if func in STEPS:
                return source + (out - source).detach()
            if func in SIGNS:
                near = source.clamp(-1, 1)
                return near + (out - near).detach()
        return source if func in CUTS else out


class ScoreRecorder(TorchFunctionMode):
    """A record of every tensor with one score a class for each image, as the model makes them."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.requires_grad:
            with torch._C.DisableTorchFunction():
                if out.ndim == 2 and len(out) == self.n:
                    self.seen.append(out)
        return out


class DifferentiableModel(nn.Module):
    """A model as it is attacked: with the answers of the given one as far as its form allows, and another gradient.

    scores: place, among the tensors of one score a class that the model makes, of those to attack instead of its
    answer.  steps: with a straight-through estimator.  before, across: by module, the linear surrogate from the images
    to the module's input, or from its input to its output.  double: whether images enter in float64.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scores: int | None = None,
        steps: bool = False,
        before: "LinearSurrogates | None" = None,
        across: "LinearSurrogates | None" = None,
        double: bool = False,
    ):
        super().__init__()
        self.model = copied(model).double() if double else model
        self.scores, self.steps, self.double_precision = scores, steps, double
        self.before, self.across = before or {}, across or {}

    def forward(self, x: Tensor) -> Tensor:
        if self.double_precision:
            x = x.double()
            if x.requires_grad:
                x.register_hook(unit_gradient)  # pyright: ignore[reportUnknownMemberType]
        if self.scores is None:
            return self.run(x, []).float()
        with torch.enable_grad():  # scores are told from other tensors by their gradient
            watch = ScoreRecorder(len(x))
            out = self.run(x if x.requires_grad else x.detach().requires_grad_(), [watch])
            found = class_scores(watch.seen, out.shape[1])[self.scores]
        return found.float() if torch.is_grad_enabled() else found.detach().float()

    def run(self, x: Tensor, modes: list[TorchFunctionMode]) -> Tensor:
        given = hand(self.model, x)  # out of the modes, which would see the copy made
        with ExitStack() as stack:
            if self.before or self.across:
                stack.enter_context(uncompiled())
            for name, line in self.before.items():
                hook = self.model.get_submodule(name).register_forward_pre_hook(input_surrogate_hook(x, *line))
                stack.callback(hook.remove)
            for name, line in self.across.items():
                hook = self.model.get_submodule(name).register_forward_hook(surrogate_hook(*line))
                stack.callback(hook.remove)
            for mode in [*modes, *([StraightThrough()] if self.steps else [])]:
                stack.enter_context(mode)
            out = self.model(given)
        return rows_of(out, len(x)).clone()


def unit_gradient(slope: Tensor) -> Tensor:
    """Each image's gradient scaled to a largest entry of 1: what float64 can tell from 0, float32 often cannot."""
    largest = slope.abs().flatten(1).amax(1).clamp_min(torch.finfo(slope.dtype).tiny)
    return slope / largest.reshape(-1, *[1] * (slope.ndim - 1))


LinearSurrogates = dict[str, tuple[Tensor, Tensor]]


def class_scores(seen: list[Tensor], classes: int) -> list[Tensor]:
    return [scores for scores in seen if scores.shape[1] == classes]


def input_surrogate_hook(x: Tensor, slope: Tensor, offset: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    """A hook by which a module gets the same input, with the gradient of a linear surrogate from the images."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        with torch._C.DisableTorchFunction():  # StraightThrough would attach what is detached, and the halves cancel
            line = x * slope.to(x) + offset.to(x)
            return (line + (inputs[0].detach() - line.detach()), *inputs[1:])

    return hook


def surrogate_hook(slope: Tensor, offset: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook by which a module gives the same output, with the gradient of a linear surrogate from its input."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # as above
            line = inputs[0] * slope.to(out) + offset.to(out)
            return line + (out.detach() - line.detach())

    return hook


@contextmanager
def watch_calls(model: nn.Module, see: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Show every call of a submodule with one tensor in and one out."""

    def hook(name: str) -> Any:
        def shown(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(out, Tensor):
                see(name, module, inputs[0], out)

        return shown

    with uncompiled(), ExitStack() as stack:
        for name, layer in model.named_modules():
            if name and not isinstance(layer, torch.jit.ScriptModule):  # which takes none
                stack.callback(layer.register_forward_hook(hook(name)).remove)
        yield


@torch.no_grad()
def input_surrogates(model: nn.Module, x: Tensor) -> LinearSurrogates:
    """The modules whose inputs are much like the images, each with the linear surrogate by channel that fits best.

    Whatever was done to the images on the way, in a module of its own or in a function, is replaced by the surrogate:
    backward pass differentiable approximation, Athalye et al. 2018, https://arxiv.org/abs/1802.00420.
    """
    found: LinearSurrogates = {}

    def see(name: str, module: nn.Module, got: Tensor, out: Tensor) -> None:
        if name not in found and got.shape == x.shape and got.is_floating_point():
            line = fit_linear(x, got)
            if line is not None:
                found[name] = line

    with watch_calls(model, see):
        ask(model, x)
    return found


def fit_linear(x: Tensor, made: Tensor) -> tuple[Tensor, Tensor] | None:
    """Slope and offset by channel that make `made` of x best; None where they explain too little of it."""
    over = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    x, made = x.double(), made.double()
    from_x, from_made = x - x.mean(over, keepdim=True), made - made.mean(over, keepdim=True)
    slope = (from_x * from_made).sum(over, keepdim=True) / from_x.square().sum(over, keepdim=True).clamp_min(1e-12)
    offset = made.mean(over, keepdim=True) - slope * x.mean(over, keepdim=True)
    rest = (made - slope * x - offset).square().sum()
    total = from_made.square().sum()
    if not total > 0 or not rest <= (1 - FITS) * total:
        return None
    return slope.reshape(shape).float(), offset.reshape(shape).float()


def module_surrogates(model: nn.Module, x: Tensor) -> LinearSurrogates:
    """The modules that keep a tensor's shape and pass no gradient, each with the linear surrogate that fits best."""
    found: LinearSurrogates = {}
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def see(name: str, module: nn.Module, got: Tensor, out: Tensor) -> None:
        if got.shape == out.shape and got.is_floating_point() and got.ndim > 1 and not list(module.children()):
            calls.append((name, module, got.detach()))

    with watch_calls(model, see), torch.no_grad():
        ask(model, x)
    for name, module, got in calls:
        if name in found or passes_gradient(module, got):
            continue
        with torch.no_grad():
            line = fit_linear(got, module(got.clone()))
        if line is not None:
            found[name] = line
    return found


@torch.enable_grad()
def passes_gradient(module: nn.Module, got: Tensor) -> bool:
    got = got.clone().requires_grad_()
    out = module(got.clone())
    if not out.requires_grad:
        return False
    (slope,) = torch.autograd.grad(out.sum(), got, allow_unused=True)
    return slope is not None and bool((slope != 0).any())


@torch.enable_grad()
def hidden_scores(model: nn.Module, x: Tensor, *, steps: bool = False) -> int | None:
    """The place of the first scores the model makes that name the classes it answers; None where it shows none.

    The scores behind a softmax, a temperature or an argmax have the gradient that these take away.
    """
    seen = ScoreRecorder(len(x))
    x = x.detach().requires_grad_().clone()
    with ExitStack() as stack:
        stack.enter_context(seen)
        if steps:
            stack.enter_context(StraightThrough())
        out = rows_of(model(x), len(x))
    for place, scores in enumerate(class_scores(seen.seen, out.shape[1])):
        if (scores.argmax(1) == out.argmax(1)).float().mean() >= AGREES:
            return place
    return None
