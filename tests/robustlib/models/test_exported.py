"""Modules that torch.export, TorchScript, torch.compile and others make of one: its numbers, or one clear line."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.audit.audit import Audit, audit
from robustlib.defences import DEFENCES
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.inference.model_modes import evaluating, into_mode
from robustlib.model_calls import ask
from robustlib.outcome import check_classes
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

CPU = torch.device("cpu")
BATCH = torch.export.Dim("batch")
X = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """PyTorch 2.6 fails to export, as it does by default, where torch.compile has given up another model."""
    torch._dynamo.reset()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(48, 10)
    return nn.Sequential(*layers).eval()


def exported(net: nn.Module, shapes: Any = ({0: BATCH},), n: int = 2) -> nn.Module:
    return torch.export.export(net, (torch.zeros(n, 1, 4, 4),), dynamic_shapes=shapes).module()


def quietly(make: Callable[..., Any], *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        return make(*args)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.25).div_(0.5))


class Pure(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.25) / 0.5)


MADE: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module]]] = {
    "exported": (lambda: exported(network()), network),
    "exported, in place": (lambda: exported(InPlace().eval()), Pure),
    "inside": (lambda: nn.Sequential(nn.Dropout(), exported(network())), network),
    "scripted": (lambda: quietly(torch.jit.script, network()), network),
    "scripted, in place": (lambda: quietly(torch.jit.script, InPlace().eval()), Pure),
    "traced": (lambda: quietly(torch.jit.trace, network(), torch.zeros(2, 1, 4, 4)), network),
    "frozen": (lambda: quietly(lambda: torch.jit.freeze(torch.jit.script(network()))), network),
    "compiled": (lambda: torch.compile(network(), backend="eager"), network),
    "parallel": (lambda: nn.DataParallel(network()), network),
}
Y = network()(X).argmax(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile, where other models were compiled before
@pytest.mark.parametrize("make, pure", MADE.values(), ids=list(MADE))
def test_it_has_the_numbers_of_the_module_it_came_from(make: Callable[[], nn.Module], pure: Callable[[], nn.Module]):
    def found(model: nn.Module) -> Any:
        attacks = [(name, partial(ATTACKS[name], eps=0.05)) for name in ("pgd", "apgd-ce")]
        ready = make_ready(model, X, 10, CPU)
        assert ready.mode(0.05).startswith("float32") and not [f for f in ready.checks if f.verdict == "fail"]
        (batch,) = evaluate_batches(model, X, Y, attacks, eps=0.05, ready=ready)
        return batch

    mine, theirs = found(make()), found(pure())
    assert 0 < theirs.outcome.success.mean() < 1
    torch.testing.assert_close(mine.x_adv, theirs.x_adv, rtol=0, atol=1e-6)
    for f in fields(mine.outcome):
        one, other = getattr(mine.outcome, f.name), getattr(theirs.outcome, f.name)
        np.testing.assert_allclose(one, other, rtol=1e-4) if f.name == "distance" else np.testing.assert_array_equal(
            one, other
        )
    model = make()
    into_mode(model, training=False)
    bare = ATTACKS["pgd"](model, X, Y, eps=0.05)
    torch.testing.assert_close(bare, ATTACKS["pgd"](pure().eval(), X, Y, eps=0.05), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exported", "scripted", "frozen"])
def test_it_is_audited(name: str):
    found = [step for step in audit(MADE[name][0](), X[:8], Y[:8], eps=0.05, queries=20) if isinstance(step, Audit)]
    assert len(found) == 1


@pytest.mark.slow
def test_what_is_exported_stays_as_it_is_and_what_is_around_it_does_not():
    inner = exported(network())
    model = nn.Sequential(nn.Dropout(), inner)
    own = vars(inner)["train"]
    with evaluating(model):
        assert not model.training and not model[0].training
    assert model.training and model[0].training and vars(inner)["train"] is own
    into_mode(DEFENCES["median"](inner, size=3), training=False)
    with pytest.raises(
        ValueError, match=r"^the model's train\(\) fails: NotImplementedError: .*: train the module that"
    ):
        next(iter(fit(inner, (X * 255).byte(), Y, TrainSettings(epochs=1), seed=0, device=CPU)))


@pytest.mark.parametrize(
    "model, line",
    [
        (
            lambda: exported(network(), None),
            r"(size\(\)\[0\] == 2|shape\[0\] to be equal to 2, but got 20): expected a model that takes any number",
        ),
        (
            lambda: exported(network(), ({0: torch.export.Dim("b", max=32)},)),
            r"of shape \(512, .*, and not on 20: expected a",
        ),
    ],
)
def test_a_batch_that_was_fixed_is_one_line(model: Callable[[], nn.Module], line: str):
    with pytest.raises(ValueError, match=line) as error:
        make_ready(model(), X, 10, CPU)
    assert "\n" not in str(error.value) and "dynamic_shapes=({0: torch.export.Dim('batch')},)" in str(error.value)


def test_a_batch_that_was_fixed_is_found_by_the_images_that_it_takes():
    with pytest.raises(
        ValueError, match=r"^the model fails on float32 images of shape \((3|512), 1, 4, 4\): (Ass|Run).*, and not on 2"
    ):
        check_classes(exported(network(), None), X[:2], 10)
    with pytest.raises(ValueError, match=r"(size\(\)\[2\] == 4|shape\[2\] to be equal to 4, but got 8)$"):
        check_classes(exported(network()), torch.rand(2, 1, 8, 8), 10)


class Answer(dict):
    """As Hugging Face's models give."""

    def __init__(self, logits: Tensor):
        super().__init__(logits=logits)
        self.logits = logits


class Odd(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]):
        super().__init__()
        self.net, self.change = network(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net(x))


@pytest.mark.parametrize(
    "change, came",
    [
        (lambda z: (z, z), "tuple: let forward return the logits alone"),
        (Answer, "Answer: let forward return its `logits` alone"),
        (lambda z: {"out": z, "aux": z}, "dict of out, aux: let forward return the logits alone"),
        (lambda z: None, "NoneType: forward must return them"),
        (lambda z: z[:, :, None, None], r"\(20, 10, 1, 1\): let forward return them flattened, `.flatten\(1\)`"),
        (lambda z: z[:-1], r"\(19, 10\)"),
        (
            lambda z: z.argmax(1),
            r"\(20,\): of labels robustlib.models.black_box.BlackBoxModel\(model, num_classes\) makes a model",
        ),
        (lambda z: torch.complex(z, z), r"\(20, 10\) of torch.complex64: let forward return real numbers"),
    ],
)
def test_another_answer_is_one_line_wherever_it_comes(change: Callable[[Tensor], Any], came: str):
    line = rf"^expected logits of shape \(20, classes\) from the model, got {came}$"
    for call in (
        lambda m: check_classes(m, X, 10),
        lambda m: next(evaluate_batches(m, X, Y, [("pgd", partial(ATTACKS["pgd"], eps=0.1))], eps=0.1)),
        lambda m: ATTACKS["pgd"](m, X, Y),
        lambda m: ATTACKS["square"](m, X, Y, queries=5),
        lambda m: ATTACKS["deepfool"](m, X, Y),
    ):
        with pytest.raises(ValueError, match=line):
            call(Odd(change))


def test_a_model_on_the_meta_device_is_one_line():
    with torch.device("meta"):
        model = network()
    for call in (
        lambda: check_classes(model, X, 10),
        lambda: next(evaluate_batches(model, X, Y, [("clean", ATTACKS["clean"])])),
    ):
        with pytest.raises(ValueError, match=r"^the model lies on the meta device, where weights have shapes and no"):
            call()


def test_a_module_that_was_never_made_one_is_one_line():
    class Forgets(nn.Module):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"whose __init__ calls super\(\).__init__\(\) first$"):
        next(evaluate_batches(Forgets(), X, Y, [("clean", ATTACKS["clean"])]))


def test_integers_are_scores():
    model = Odd(lambda z: nn.functional.one_hot(z.argmax(1), 10))
    assert torch.equal(ask(model, X).argmax(1), Y) and ask(model, X).dtype == torch.float32
    assert torch.equal(
        ATTACKS["square"](model, X, Y, queries=20, eps=0.3) != X,
        ATTACKS["square"](Odd(lambda z: model.change(z).float()), X, Y, queries=20, eps=0.3) != X,
    )


class Eval(Odd):
    """Its eval() gives None, as people forget, or fails."""

    def __init__(self, fails: bool = False):
        super().__init__(lambda z: z)
        self.fails = fails

    def eval(self) -> Any:
        if self.fails:
            raise RuntimeError("not\nnow")
        super().train(False)


class Stays(Odd):
    """Its to() fails, as that of a quantised network does, or gives None."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        if self.change is None:
            raise TypeError("stays\nhere")


@pytest.mark.slow
def test_eval_and_to_that_give_nothing_or_fail():
    pgd = [("pgd", partial(ATTACKS["pgd"], eps=0.1))]
    expected = next(evaluate_batches(network(), X, Y, pgd, eps=0.1))
    for model in (Eval(), Stays(lambda z: z)):
        assert torch.equal(next(evaluate_batches(model, X, Y, pgd, eps=0.1)).x_adv, expected.x_adv)
    with pytest.raises(ValueError, match=r"^the model's eval\(\) fails: RuntimeError: not now$"):
        make_ready(Eval(fails=True), X, 10, CPU)
    with pytest.raises(ValueError, match=r"^the model's to\('cuda'\) fails: TypeError: stays here$"):
        make_ready(Stays(None), X, 10, torch.device("cuda"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "model, came",
    [(partial(lambda x: x), "partial: robustlib.models.black_box.BlackBoxModel"), (Pure, "the class Pure: make one")],
)
def test_what_is_no_module_is_one_line(model: Any, came: str):
    for call in (evaluate_batches, partial(audit, eps=0.1)):
        args = () if call is not evaluate_batches else ([],)
        with pytest.raises(TypeError, match=rf"^(evaluate|audit): expected a torch.nn.Module, got {came}"):
            next(iter(call(model, X, Y, *args)))


def test_a_model_that_is_not_of_float32_or_whose_own_check_fails():
    def fails(z: Tensor) -> Tensor:
        raise ValueError("two\nlines")

    for model, line in (
        (
            network().double(),
            r"^the model fails on .*: its weights are torch.float64, expected float32: call its .float\(\)$",
        ),
        (Odd(fails), "^two lines$"),
        (Odd(lambda z: exit(3)), "^the model fails on .*: SystemExit: 3$"),
    ):
        with pytest.raises(ValueError, match=line):
            check_classes(model, X, 10)
