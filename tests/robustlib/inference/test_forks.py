"""Work shared out among processes: its results, its errors, and processes that die, hang or outlive their parent."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.types import as_stage
from robustlib.evaluation import plans
from robustlib.evaluation.batches import evaluate_batches, evaluate_curve, make_ready
from robustlib.inference import forks, threads
from robustlib.inference.forks import in_processes
from robustlib.inference.replicas import Replicas
from robustlib.inference.threads import ForkedReplicas, ThreadedReplicas, make_shares
from robustlib.memory import out_of_memory
from robustlib.models.black_box import BlackBoxModel
from robustlib.models.layers import Normalize

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not forks.can_fork(), reason="forks are used on Linux alone"),
]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def children() -> list[str]:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


def test_each_work_has_a_process_but_the_first_and_their_order_stays():
    found = in_processes([lambda k=k: (k, os.getpid(), torch.get_num_threads(), torch.full((3,), k)) for k in range(4)])
    assert [k for k, *_ in found] == [0, 1, 2, 3]
    assert found[0][1] == os.getpid() and len({pid for _, pid, *_ in found}) == 4
    assert [number for _, _, number, _ in found[1:]] == [1, 1, 1]
    assert all(torch.equal(tensor, torch.full((3,), k)) for k, _, _, tensor in found)
    assert not children()


def test_much_comes_back_whole():
    x = torch.arange(4_000_000, dtype=torch.float32)
    _, found = in_processes([lambda: x, lambda: x + 1])
    assert torch.equal(found, x + 1)


class Told(Exception):
    """Pickle cannot make it again: it takes two arguments and hands on one."""

    def __init__(self, text: str, other: int):
        super().__init__(text)


def test_an_error_comes_with_its_own_traceback():
    def fails():
        raise ZeroDivisionError("mine")

    def told():
        raise Told("of two arguments", 2)

    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        in_processes([int, fails])
    assert any("in fails" in note for note in raised.value.__notes__)
    with pytest.raises(RuntimeError, match=r"^Told: of two arguments"):
        in_processes([int, told])
    with pytest.raises(ZeroDivisionError):
        in_processes([fails, partial(time.sleep, 60)])  # which is not waited for
    assert not children()


def test_the_work_of_a_process_that_dies_is_done_anew():
    here = os.getpid()

    def dies():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with pytest.warns(UserWarning, match="died or hung"):
        assert in_processes([str, dies]) == ["", "done"]


def test_the_work_of_a_process_that_hangs_is_done_anew(monkeypatch: pytest.MonkeyPatch):
    """As one does that waits for a lock which a thread of its parent held."""
    monkeypatch.setattr(forks, "STUCK_SECONDS", 0.6)
    monkeypatch.setattr(forks, "LOOK_SECONDS", 0.1)
    here, lock, slow = os.getpid(), threading.Lock(), torch.rand(300, 300)

    def hangs():
        with lock:
            return "done"

    def works():
        until = time.process_time() + 1.5
        while os.getpid() != here and time.process_time() < until:
            slow.matmul(slow)
        return os.getpid()

    lock.acquire()
    threading.Timer(1.5, lock.release).start()
    with pytest.warns(UserWarning, match="died or hung"):
        assert in_processes([str, hangs]) == ["", "done"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_processes([os.getpid, works])[1] != here


def test_where_no_process_can_be_made(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.warns(UserWarning, match="could not be made"):
        assert in_processes([lambda: 1, lambda: 2]) == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert not forks.can_differentiate()


def test_with_many_files_open():
    """`select.select` would refuse the pipe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine lets a process open fewer")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    held = [os.dup(0) for _ in range(1030)]
    try:
        assert in_processes([lambda: 1, lambda: 2]) == [1, 2]
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_a_process_leaves_behind_is_not_waited_for():
    """A process that the model started holds the pipe open."""

    def leaves():
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        return "done"

    start = time.monotonic()
    assert in_processes([str, leaves]) == ["", "done"]
    assert time.monotonic() - start < 20


def test_memory_that_ran_out_says_so_though_only_its_cause_does():
    def fails():
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("the model fails") from error

    with pytest.raises(MemoryError, match=r"^ValueError: the model fails") as raised:
        in_processes([int, fails])
    assert out_of_memory(raised.value)


def test_a_backward_pass_that_no_fork_can_make_is_made_here():
    """As where autograd has threads for a GPU. PyTorch says so in these words."""
    here = os.getpid()

    def fails():
        if os.getpid() != here:
            raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing.")
        return "done"

    with pytest.warns(UserWarning, match="died or hung"):
        assert in_processes([str, fails]) == ["", "done"]
    assert forks.can_differentiate()


def test_it_ends_with_its_parent():
    code = """
import os, time
from robustlib.inference.replicas import Replicas
from robustlib.inference.forks import in_processes
def tells():
    print(os.getpid(), flush=True)
    time.sleep(600)
in_processes([lambda: time.sleep(600), tells])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while time.monotonic() < until and alive(child):
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_give_what_threads_give(two_threads, monkeypatch: pytest.MonkeyPatch, net: nn.Module, test):
    monkeypatch.setattr(plans, "MANY", 1)
    x, y = test[0][:60], test[1][:60]
    stages = [("apgd-ce", partial(ATTACKS["apgd-ce"], eps=0.06, steps=8))]
    found = []
    for fork in (True, False):
        monkeypatch.setattr(threads, "can_fork", lambda fork=fork: fork)
        ready = make_ready(net, x, 10, CPU)
        (batch,) = evaluate_batches(net, x, y, stages, eps=0.06, ready=ready)
        assert ready.replicas is not None
        found.append((batch, ready.replicas.passes))
    (one, passes), (other, others_passes) = found
    assert torch.equal(one.x_adv, other.x_adv) and 0 < one.outcome.success.mean() < 1
    assert all(values.tobytes() == getattr(other.outcome, name).tobytes() for name, values in vars(one.outcome).items())
    assert passes == others_passes and passes.gradients > 0


def test_who_shares_out_by_processes(two_threads, net: nn.Module, test):
    replicas = make_ready(net, test[0], 10, CPU).replicas
    assert replicas is not None
    shares = make_shares(replicas, CPU, fork=True)
    assert isinstance(shares, ForkedReplicas) and shares.number == 2
    assert isinstance(make_shares(replicas, CPU, fork=False), ThreadedReplicas)

    black_box = BlackBoxModel(lambda x: x.flatten(1)[:, :10], 10)
    behind = nn.Sequential(Normalize([0.5], [0.5]), black_box)
    asked = make_ready(behind.eval(), test[0], 10, CPU).replicas
    assert asked is not None and isinstance(make_shares(asked, CPU, fork=True), ThreadedReplicas)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "can_differentiate", lambda: False)
        assert isinstance(make_shares(replicas, CPU, fork=True), ThreadedReplicas)

    class NoTensors(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    replicas = make_ready(NoTensors(), test[0], 10, CPU).replicas
    assert replicas is not None and isinstance(make_shares(replicas, CPU, fork=True), ThreadedReplicas)


def test_passes_are_counted_also_of_a_process_that_died(two_threads, net: nn.Module, test):
    replicas = make_ready(net, test[0], 10, CPU).replicas
    assert replicas is not None
    shares, here = make_shares(replicas, CPU, fork=True), os.getpid()
    assert isinstance(shares, ForkedReplicas)

    def work(own: Replicas, rows: Tensor) -> int:
        own.search(test[0][rows])
        if os.getpid() != here and len(rows) == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(rows)

    before = replicas.passes.forwards
    assert [part for _, part in shares.scatter(20, work)] == [10, 10]
    assert replicas.passes.forwards == before + 20
    with pytest.warns(UserWarning, match="died"):
        assert [part for _, part in shares.scatter(32, work)] == [16, 16]
    assert replicas.passes.forwards == before + 52


def test_images_of_a_radius_are_sent_without_those_of_the_others(
    two_threads, monkeypatch: pytest.MonkeyPatch, net: nn.Module, test
):
    monkeypatch.setattr(plans, "MANY", 1)
    plan = [(eps, [("pgd", partial(ATTACKS["pgd"], eps=eps))]) for eps in (0.03, 0.06, 0.09)]
    (radii,) = evaluate_curve(net, test[0][:20], test[1][:20], plan, num_classes=10)
    assert [batch.x_adv.untyped_storage().nbytes() for batch in radii] == [radii[0].x_adv.nbytes] * 3


def test_long_attacks_of_ours_are_worth_processes():
    long, short = ("square", partial(ATTACKS["square"], eps=0.1)), ("pgd", partial(ATTACKS["pgd"], eps=0.1, steps=20))
    mine = ("mine", lambda model, x, y, *, draws: x)
    named = [[long], [short], [short, long], [long, mine], [("pgd", partial(ATTACKS["pgd"], eps=0.1, steps=1000))]]
    assert [plans.is_worth_forks([(0.1, stages)]) for stages in named] == [True, False, True, False, True]
    assert not plans.is_worth_forks([(k / 100, [short]) for k in range(1, 9)])  # radii are one search
    assert plans.is_worth_forks([(0.1, ENSEMBLES["autoattack"](norm="Linf", eps=0.1).stages)])


def test_a_users_attack_stays_in_this_process(two_threads, monkeypatch: pytest.MonkeyPatch, net: nn.Module, test):
    monkeypatch.setattr(plans, "MANY", 0)
    where = []

    def mine(model: nn.Module, x: Tensor, y: Tensor, *, draws: object) -> Tensor:
        where.append(os.getpid())
        return x

    list(evaluate_batches(net, test[0][:20], test[1][:20], [("mine", mine)], eps=0.1, num_classes=10))
    assert where == [os.getpid()] * 2
    assert not as_stage(mine).is_ours and all(as_stage(attack).is_ours for attack in ATTACKS.values())
