"""Recorded steps, on a stand-in for CUDA graphs that spoils what a replay spoils: they find what eager steps find."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.hard_nets import Faint, Steep
from robustlib import hyperplane, norms
from robustlib.attacks import ATTACKS
from robustlib.evaluation import fixed_models
from robustlib.evaluation.batches import Ready, evaluate_batches
from robustlib.inference import fixed_oracle, recorded_steps
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.gradients import without_vanished
from robustlib.inference.oracle import Oracle
from robustlib.inference.recorded_steps import LONGEST
from robustlib.inference.replica import Replica, Unseen
from robustlib.inference.replicas import Replicas
from robustlib.inference.step_blocks import blank
from robustlib.inference.steps import Phase, Rows, search_ball
from robustlib.losses import misclassified
from robustlib.memory import out_of_memory
from robustlib.outcome import Batch
from tests.helpers.fake_cuda import FakeCuda, install, looks_at_numbers

pytestmark = pytest.mark.slow

SIZES = (8, 16)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("pgd", "Linf", {"eps": 0.02, "steps": 9, "stop_at_success": True}),
    ("pgd", "L2", {"eps": 0.15, "steps": 9, "stop_at_success": True}),
    ("pgd", "L1", {"eps": 1.0, "steps": 9, "stop_at_success": True}),
    ("pgd", "Linf", {"eps": 0.02, "steps": 7, "loss": "margin"}),
    ("mifgsm", "Linf", {"eps": 0.02, "steps": 9}),
    ("apgd-ce", "Linf", {"eps": 0.02, "steps": 20}),
    ("apgd-ce", "L2", {"eps": 0.15, "steps": 20}),
    ("apgd-ce", "L1", {"eps": 1.0, "steps": 30}),
    ("apgd-t", "Linf", {"eps": 0.018, "steps": 12, "targets": 3}),
    ("apgd-t", "L1", {"eps": 1.0, "steps": 24, "targets": 2}),
    ("fab", "Linf", {"eps": 0.02, "steps": 8, "classes": 4}),
    ("fab", "L2", {"eps": None, "steps": 8, "classes": 4}),
    ("fab-t", "Linf", {"eps": 0.018, "steps": 8, "targets": 3}),
    ("fab-t", "L1", {"eps": 1.0, "steps": 8, "targets": 2}),
    ("deepfool", "L2", {"steps": 8, "classes": 4}),
    ("deepfool", "Linf", {"steps": 8, "classes": 4}),
    ("fmn", "Linf", {"steps": 12}),
    ("fmn", "L2", {"steps": 12}),
    ("fmn", "L1", {"steps": 12}),
    ("square", "Linf", {"eps": 0.03, "queries": 40}),
    ("square", "L2", {"eps": 0.3, "queries": 40}),
    ("square", "L1", {"eps": 2.0, "queries": 40}),
    ("cw", "L2", {"steps": 30, "search_steps": 2, "step_size": 0.05}),
]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Graphs on a CPU, whose numbers cost as much to look at as a device's."""
    for module in (hyperplane, norms):
        monkeypatch.setattr(module, "looks", lambda tensor: False)
    monkeypatch.setattr(hyperplane, "BLIND_PASSES", 10)
    return install(monkeypatch)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6 * 4 * 4, 10)).eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(22, 1, 8, 8, generator=torch.Generator().manual_seed(0))


PGD = partial(ATTACKS["pgd"], eps=0.02, steps=9, stop_at_success=True)


def recorded(net: nn.Module, **options: Any) -> Replica:
    return Replica(Graphs(net), sizes=SIZES, recorded=True, mode="float32, graphs", **options)


def eager(net: nn.Module, **options: Any) -> Replica:
    return Replica(net, sizes=SIZES, **options)


def fell(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    return misclassified(net(x_adv), y)


@pytest.mark.parametrize("name, norm, options", CASES)
def test_they_find_what_eager_steps_find(
    name: str, norm: str, options: dict, cuda: FakeCuda, net: nn.Module, x: Tensor
):
    """Rows enough for two blocks, the last of them not full."""
    y, attack = net(x).argmax(1), partial(ATTACKS[name], norm=norm, **options)
    model = recorded(net)
    found, expected = attack(model, x, y), attack(eager(net), x, y)
    assert torch.equal(fell(net, found, y), fell(net, expected, y))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.mode == "float32, graphs, recorded steps"


@pytest.mark.parametrize(
    "name, drift, options",
    [("pgd", 0.012, {"stop_at_success": True}), ("apgd-ce", 0.012, {}), ("fab", 5e-4, {"classes": 3})],
)
def test_the_judge_has_the_last_word(name: str, drift: float, options: dict, cuda: FakeCuda, net: nn.Module, x: Tensor):
    """It denies what lies less than its drift beyond the boundary, which steps on the copy cross first."""
    y, attack = net(x).argmax(1), partial(ATTACKS[name], eps=0.03, steps=12, **options)
    judge = eager(net, drift=drift)
    found, expected = attack(recorded(net, judge=judge), x, y), attack(eager(net, judge=judge), x, y)
    right = judge.misclassifies(expected, y)
    assert torch.equal(judge.misclassifies(found, y), right)
    assert 0 < right.sum() < fell(net, attack(eager(net), x, y), y).sum()  # some were denied to the end


@pytest.mark.parametrize("whose", ["its own", "the quick one's"])
def test_blocks_are_of_sizes_at_which_the_copies_agree(whose: str, cuda: FakeCuda, net: nn.Module, x: Tensor):
    asked = list[int]()

    def compare(replica: Replica, size: int) -> str:
        asked.append(size)
        return "other gradients"

    y, unseen = net(x).argmax(1), Unseen({SIZES[-1]}, compare)
    copy = recorded(net, unseen=unseen)
    model = copy if whose == "its own" else recorded(net, in_half=copy)
    found = PGD(model, x, y)
    assert asked == [SIZES[-1]] and {len(block.place) for block in model.recordings.blocks.values()} <= set(SIZES[:-1])
    assert model.recordings.played and model.sizes == (SIZES[:-1] if whose == "its own" else SIZES)
    assert torch.equal(fell(net, found, y), fell(net, PGD(eager(net), x, y), y))


def test_nearest_images_are_confirmed(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y, attack = net(x).argmax(1), partial(ATTACKS["fmn"], norm="L2", steps=12)
    judge = eager(net, drift=5e-4)
    found, expected = attack(recorded(net, judge=judge), x, y), attack(eager(net, judge=judge), x, y)
    assert torch.equal(judge.misclassifies(found, y), judge.misclassifies(expected, y))
    assert torch.equal((found != x).flatten(1).any(1), (expected != x).flatten(1).any(1))
    far, right = ((images - x).flatten(1).norm(dim=1) for images in (found, expected))
    torch.testing.assert_close(far, right, rtol=0.1, atol=0.01)


def in_half(net: nn.Module, *, recorded: bool = True, drift: float = 1e-2, sizes: tuple[int, ...] = SIZES) -> Replica:
    """A copy in float16, as `make_replicas` puts it together."""
    fine = eager(net)
    half = Graphs(copy.deepcopy(net).half())
    how: dict[str, Any] = {"dtype": torch.float16, "precision": torch.float16, "drift": drift}
    return Replica(half, sizes=sizes, recorded=recorded, judge=fine, spare=fine, in_float32=fine, **how)


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "mifgsm"])
def test_beyond_float16_they_are_float32s(name: str, cuda: FakeCuda):
    """Images whose numbers half precision cannot hold take the window again."""
    net, y = Steep().requires_grad_(False), torch.zeros(10, dtype=torch.int64)
    x = 0.5 + 0.01 * torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y, model = net(x).argmax(1), in_half(net)
    options = {"stop_at_success": True} if name == "pgd" else {}
    found = ATTACKS[name](model, x, y, eps=0.1, steps=10, **options)
    assert fell(net, found, y).all() and fell(net, ATTACKS[name](net, x, y, eps=0.1, steps=10, **options), y).all()
    assert model.count.overflows > 0 and model.recordings.blocks and not model.recordings.refused


def test_faint_gradients_lead_as_far_as_eagerly(cuda: FakeCuda):
    net, x = Faint().requires_grad_(False), torch.full((5, 1, 4, 4), 0.2)
    y, model = torch.zeros(5, dtype=torch.int64), in_half(net)
    found, expected = PGD(model, x, y, eps=0.1), PGD(in_half(net, recorded=False), x, y, eps=0.1)
    assert torch.equal(fell(net, found, y), fell(net, expected, y)) and fell(net, found, y).any()


def test_gradients_that_vanished_are_told_without_a_look():
    back, slope = torch.rand(3, 1, 4, 4), torch.rand(3, 10)
    back[1], slope[2] = 0, 0
    assert without_vanished(back, slope, looking=False)[1].isnan().all()
    for same in (back, back[[0, 2]], torch.zeros_like(back)):
        found = [without_vanished(same, slope[: len(same)], looking=looking) for looking in (True, False)]
        assert torch.equal(found[0].nan_to_num(9), found[1].nan_to_num(9))


def test_nothing_of_one_run_is_frozen_into_the_next(cuda: FakeCuda, net: nn.Module, x: Tensor):
    """The recordings are kept: the second run records nothing, and has its own answers."""
    model, attack = recorded(net), partial(PGD, steps=14, stop_at_success=False)
    attack(model, x, net(x).argmax(1))
    streams = len(cuda.streams)
    other = (1 - x).flip(0)
    y = net(other).argmax(1)
    torch.testing.assert_close(attack(model, other, y), attack(eager(net), other, y))
    assert len(cuda.streams) == streams
    torch.testing.assert_close(attack(model, x, y, eps=0.1), attack(eager(net), x, y, eps=0.1))
    assert len(cuda.streams) > streams


def test_passes_are_counted_without_the_filling(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y, model, other = net(x).argmax(1), recorded(net), eager(net)
    for each in (model, other):
        partial(PGD, stop_at_success=False)(each, x, y)
    assert (model.count.forwards, model.count.gradients) == (other.count.forwards, other.count.gradients)


def test_small_differences_are_told_in_float32(
    cuda: FakeCuda, net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
):
    """The judge is asked about half of the rows at once; what it was not asked about comes again."""
    monkeypatch.setattr(fixed_oracle, "SHARE", 2)  # of 16 and 32: on a CPU 2 rows have other last bits than 8
    y, spent = net(x).argmax(1), (torch.zeros(22, dtype=torch.int64), torch.zeros(22, dtype=torch.int64))
    attack = partial(ATTACKS["square"], x=x, y=y, eps=0.03, queries=40)
    how: dict[str, Any] = {"drift": 1.0, "sizes": (16, 32)}
    model, other = in_half(net, **how), in_half(net, recorded=False, **how)
    found, expected = attack(model, spent=spent[0]), attack(other, spent=spent[1])
    assert torch.equal(found, expected) and torch.equal(*spent)
    assert model.recordings.played > 0 and 0 < fell(net, found, y).sum() < len(y)


class Looking(nn.Module):
    """A user's layer that makes Python look at a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 1e9 else x


def test_what_cannot_be_recorded_runs_eagerly_and_says_so(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y, awkward = net(x).argmax(1), nn.Sequential(Looking(), net)
    before = torch.cuda.current_stream()
    model = Replica(Plain(awkward), sizes=SIZES, recorded=True, mode="float32, graphs")
    torch.testing.assert_close(PGD(model, x, y), PGD(eager(net), x, y))
    words = "steps not recorded: a pass of 8 images cannot be recorded: RuntimeError: operation not permitted"
    assert model.mode == f"float32, graphs, {words} when stream is capturing"
    assert torch.cuda.current_stream() is before
    later = recorded(net)
    torch.testing.assert_close(PGD(later, x, y), PGD(eager(net), x, y))
    assert later.mode == "float32, graphs, recorded steps"


class Plain(Graphs):
    """Calls the network itself: passes that nobody records."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_memory_that_does_not_hold_a_recording(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y, model = net(x).argmax(1), Replica(Plain(net), sizes=SIZES, recorded=True, mode="float32")
    cuda.refuses = "CUDA out of memory"
    torch.testing.assert_close(PGD(model, x, y), PGD(eager(net), x, y))
    assert model.mode == "float32, steps not recorded: no memory for it"


def test_errors_after_a_recording_without_memory_are_no_lack_of_memory(cuda: FakeCuda, net: nn.Module, x: Tensor):
    """Else batches would be halved for an error of the model's own."""
    calls = [0]

    class Fails(Graphs):
        def __call__(self, x: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] > 4:
                raise ValueError("the model's own")
            return self.net(x)

    cuda.refuses = "CUDA out of memory"
    model = Replica(Fails(net), sizes=SIZES, recorded=True, mode="float32")
    with pytest.raises(ValueError, match="the model's own") as raised:
        PGD(model, x, net(x).argmax(1))
    assert model.recordings.refused and not out_of_memory(raised.value) and model.sizes == SIZES


def test_an_evaluation_tells_how_its_own_steps_were_taken(
    cuda: FakeCuda, net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fixed_models, "make_shares", lambda *_, **__: None)  # the fakes cannot be copied
    y, model = net(x).argmax(1), recorded(net)
    made = Ready(net, Replicas(eager(net), model, model), classes=10, seconds=0.0)

    def evaluation(name: str, **options: int) -> tuple[Ready, Iterator[Batch]]:
        ready = made.for_evaluation()
        attack = partial(ATTACKS[name], eps=0.02, **options)
        return ready, evaluate_batches(net, x, y, [(name, attack)], eps=0.02, ready=ready, batch_size=len(x) // 2)

    by_pgd, by_noise = evaluation("pgd"), evaluation("noise", queries=3)
    for _ in range(2):  # two batches each, in turn
        next(by_pgd[1])
        next(by_noise[1])
    assert by_pgd[0].mode(0.02) == "float32, graphs, recorded steps"
    assert by_noise[0].mode(0.02) == made.mode(0.02) == "float32, graphs"


def test_memory_that_does_not_hold_a_smaller_block(
    cuda: FakeCuda, net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
):
    """Those who are left go on eagerly from where they are."""
    y, model = net(x[:16]).argmax(1), recorded(net)

    def make(run: Rows, size: int) -> Rows:
        if size < SIZES[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return blank(run, size)

    monkeypatch.setattr(recorded_steps, "blank", make)
    attack = partial(PGD, x=x[:16], y=y, eps=0.04, steps=14)
    torch.testing.assert_close(attack(model), attack(eager(net)))
    assert model.mode == "float32, graphs, steps not recorded: no memory for it"


def test_a_run_of_few_steps_records_nothing(cuda: FakeCuda, net: nn.Module, x: Tensor):
    model = Replica(Plain(net), sizes=SIZES, recorded=True, mode="float32")
    PGD(model, x, net(x).argmax(1), steps=4)
    assert model.mode == "float32" and cuda.streams == []


class Looks(TorchDispatchMode):
    """Counts what a device is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += looks_at_numbers(func, args)
        return func(*args, **(kwargs or {}))


def test_the_host_looks_every_few_steps(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y, model = net(x).argmax(1), recorded(net)
    attack = partial(PGD, x=x[:16], y=y[:16], eps=0.001, steps=5 * LONGEST)  # too little for anybody to fall
    attack(model)
    with Looks() as few:
        attack(model)
    with Looks() as many:
        attack(eager(net))
    assert few.count <= 20 < 5 * LONGEST <= many.count


@contextmanager
def steps_of(change: Any) -> Iterator[Any]:
    """A search of eight steps whose move does this besides."""

    def ask(oracle: Oracle, run: Rows, phase: Phase) -> Tensor:
        return misclassified(oracle.logits(run.x_adv), run.y)

    def move(oracle: Oracle, run: Rows, phase: Phase) -> None:
        run.x_adv = (run.x_adv + 0.01).clamp(0, 1)
        change(run)

    yield lambda model, x, y: search_ball(model, Rows(x=x, y=y, x_adv=x), ask, move, [Phase()] * 8, None)


def test_a_state_that_changes_its_kind_is_not_recorded(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y = net(x).argmax(1)
    for change, words in (
        (lambda run: vars(run).update(turns=getattr(run, "turns", 0) + 1), "what is no tensor"),
        (
            lambda run: vars(run).update(y=run.y.double() if run.y.dtype == torch.int64 else run.y.long()),
            "its y changes",
        ),
    ):
        model = recorded(net)
        with steps_of(change) as search:
            search(model, x, y)
        assert words in model.mode


def test_steps_that_close_over_tensors_are_not_kept(cuda: FakeCuda, net: nn.Module, x: Tensor):
    y, model = net(x).argmax(1), recorded(net)
    more = torch.rand(1)
    for _ in range(2):
        with steps_of(lambda run: vars(run).update(x_adv=run.x_adv + 0 * more)) as search:
            search(model, x, y)
    assert model.mode.endswith("recorded steps") and not model.recordings.blocks
