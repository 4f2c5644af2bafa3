"""What is said of a worker's end: the line of its log, or of Ray's error, that names the cause. Without starting Ray."""

from pathlib import Path

import pytest

from robustq.cluster.messages import Place
from robustq.cluster.ray_connection import import_ray
from robustq.cluster.worker_ends import describe_end, last_log_line

MARKS = ":job_id:01000000\n:task_name:rq:eval:1\n"
# As Ray 2.60 and Python 3.11 wrote it.
SEGFAULT = """*** SIGSEGV received at time=1795746353 on cpu 1 ***
PC: @     0x7fe84f185ad8  (unknown)  (unknown)
    @     0x7fe84f05a050  (unknown)  (unknown)
[2026-11-27 02:25:53,912 E 3570 3570] logging.cc:474: *** SIGSEGV received at time=1795746353 on cpu 1 ***
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/home/me/m.py", line 8 in forward
  File "/usr/lib/torch/nn/modules/module.py", line 519 in __call__

Extension modules: numpy.linalg._umath_linalg, yaml._yaml (total: 2)
"""
THREAD = 'Exception in thread Thread-1 (x):\nTraceback (most recent call last):\n  File "m.py", line 19, in x\n    1/0\nZeroDivisionError: division by zero\n\n'


def place(folder: Path, text: str, begins: int = 0) -> Place:
    (folder / "worker.err").write_text(text)
    return Place("node", "id", 1, "", "", str(folder / "worker.err"), begins)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MARKS, None),
        (MARKS + SEGFAULT, 'Fatal Python error: Segmentation fault, File "/home/me/m.py", line 8 in forward'),
        (MARKS + "Fatal Python error: Aborted\n", "Fatal Python error: Aborted"),
        (MARKS + THREAD, "ZeroDivisionError: division by zero"),
        (MARKS + "terminate called after throwing an instance of 'c10::Error'\n" + SEGFAULT.partition("Fatal")[0],
         "terminate called after throwing an instance of 'c10::Error'"),
        ("x" * 500, "x" * 300 + "..."),
        ("y" * 100_000 + "\nlast\n", "last"),
    ],
    ids=["nothing", "segfault", "aborted", "thread", "c++", "long", "much"],
)  # fmt: skip
def test_the_last_words_are_the_workers_own(text: str, words: str | None, tmp_path: Path):
    assert last_log_line(place(tmp_path, text)) == words


def test_what_an_earlier_bundle_printed_does_not_count(tmp_path: Path):
    assert last_log_line(place(tmp_path, "a warning\n", begins=10)) is None
    assert last_log_line(place(tmp_path, "a warning\nthe end\n", begins=10)) == "the end"
    assert last_log_line(Place("node", "id", 1, "", "", "/nowhere/worker.err")) is None  # on another machine
    assert last_log_line(None) is None


def test_rays_errors_by_their_cause(tmp_path: Path):
    ray = import_ray()
    trace = "Traceback:\n  File 'x'\nModuleNotFoundError: No module named 'robustq.cluster.worker'; 'cluster' is not a package\n"
    told = ray.exceptions.RayTaskError("f", trace, ValueError("x"))
    assert (
        describe_end(ray, told, None)
        == "ModuleNotFoundError: No module named 'robustq.cluster.worker'; 'cluster' is not a package"
    )
    died = ray.exceptions.WorkerCrashedError()
    assert describe_end(ray, died, None).startswith("WorkerCrashedError: The worker died unexpectedly")
    said = "WorkerCrashedError, and the last that it printed is: ZeroDivisionError: division by zero"
    assert describe_end(ray, died, place(tmp_path, THREAD)) == said
    full = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMore\nand more\n")
    assert describe_end(ray, full, place(tmp_path, THREAD)).startswith(
        "OutOfMemoryError: Task was killed due to the node"
    )
