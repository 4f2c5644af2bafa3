"""What is inside of wrappers has their answers, and hooks on its layers are called also where code was compiled."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustlib.audit.gradient_bypass import input_surrogates
from robustlib.explanations.grad_cam import grad_cam
from robustlib.inference import fast_copy
from robustlib.inference.compiler_stance import UNCOMPILED, uncompiled
from robustlib.inference.graph_rewriting import fold
from robustlib.inference.wrappers import unwrapped
from tests.helpers.wrapped import WRAPPERS, Wrap, compiled, compiled_in_place, network

pytestmark = pytest.mark.slow  # PyTorch's compiler is loaded

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))


@pytest.fixture(autouse=True)
def left_as_it_was() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    if dist.is_initialized():
        dist.destroy_process_group()


@wrapped
def test_what_is_inside_has_the_networks_names_and_answers(wrap: Wrap):
    """Also where the network was called before, and as a part of another; the model given stays as it is."""
    model = nn.Sequential(nn.Identity(), wrap(network()))
    expected, kinds = model(X), [type(layer) for layer in model.modules()]
    found = unwrapped(model)
    assert torch.equal(found(X), expected) and [type(layer) for layer in model.modules()] == kinds
    assert list(found.state_dict()) == [f"1.{name}" for name in network().state_dict()]
    own = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    assert own.isdisjoint(id(tensor) for tensor in found.state_dict(keep_vars=True).values())
    assert list(unwrapped(wrap(network())).state_dict()) == list(network().state_dict())


@wrapped
def test_what_is_inside_can_be_folded(wrap: Wrap):
    for model in (wrap(network()), nn.Sequential(nn.Identity(), wrap(network()))):
        net = fold(unwrapped(model))
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
        torch.testing.assert_close(net(X), network()(X))


def test_only_a_gpu_searches_on_what_is_inside(monkeypatch: pytest.MonkeyPatch):
    """A CPU's stored results replay to the bit, which other code need not."""
    model = compiled(network())
    assert type(fast_copy.searched(model)) is type(model)
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    net, mode = fast_copy.folded(model)
    assert mode == "folded" and not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())


def test_a_wrapper_in_two_places_is_one_module_in_both():
    model = nn.Sequential(wrapper := compiled(nn.Conv2d(1, 1, 1)), wrapper)
    found = unwrapped(model)
    assert type(found[0]) is nn.Conv2d and found[0] is found[1]  # pyright: ignore[reportIndexIssue]


def doubled(module: nn.Module, inputs: Any, answer: Tensor) -> Tensor:
    return 2 * answer


def test_hooks_on_a_wrapper_are_not_lost():
    for wrap in (nn.DataParallel, compiled):
        model = wrap(network())
        model.register_forward_hook(doubled)
        if wrap is compiled:
            with pytest.raises(
                ValueError, match=r"^a copy loses the hooks on what torch\.compile made: expected them on"
            ):
                unwrapped(model)
        else:
            assert torch.equal(unwrapped(model)(X), 2 * network()(X))


def test_a_model_that_cannot_be_copied_is_one_line():
    model = network()
    model.lock = threading.Lock()  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"^the model cannot be copied: TypeError: cannot pickle '_thread.lock' object$"
    ):
        unwrapped(model)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (15 * x).round() / 15


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place], ids=["compiled", "compiled in place"])
def test_layers_of_what_was_compiled_and_called_are_watched(wrap: Wrap):
    """The compiler leaves out hooks that are put on a layer once it has compiled it without."""
    plain = nn.Sequential(Rounded(), *network())
    model = wrap(nn.Sequential(Rounded(), *network()))
    model(X)
    names = {name.removeprefix("_orig_mod").removeprefix(".") for name in input_surrogates(model, X)}
    assert names - {""} == set(input_surrogates(plain, X)) == {"0", "1"}
    target = torch.arange(6)
    torch.testing.assert_close(grad_cam(model, X, target), grad_cam(plain, X, target))


def test_the_compilers_stance_is_put_back_by_the_last_who_holds_it():
    calls: list[str] = []

    def backend(graph, examples):
        calls.append("compiled")
        return graph.forward

    def double(x: Tensor) -> Tensor:
        return x * 2

    function = torch.compile(double, backend=backend)
    with uncompiled():
        with uncompiled():
            function(X)
        function(X)
        assert calls == []
    assert (UNCOMPILED.holders, UNCOMPILED.stance) == (0, None)
    assert torch.equal(function(X), 2 * X) and calls == ["compiled"]


def test_who_could_not_take_the_stance_does_not_hold_it(monkeypatch: pytest.MonkeyPatch):
    """PyTorch refuses it within what it has compiled; counted, nobody would put it back any more."""

    def refuse(stance: str) -> None:
        raise RuntimeError("attempted to set_stance in a torch.compile region")

    torch.compile(nn.Identity())  # loads the compiler
    monkeypatch.setattr(torch.compiler, "set_stance", refuse)
    with pytest.raises(RuntimeError, match="set_stance"), uncompiled():
        pass
    assert (UNCOMPILED.holders, UNCOMPILED.stance) == (0, None)
