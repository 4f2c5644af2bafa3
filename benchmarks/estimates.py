"""Expected seconds of a study's jobs beside those that they took, on an empty store and on one that knows such jobs.

    python benchmarks/estimates.py --study studies/quickstart.yaml --warm
    python benchmarks/estimates.py --study studies/under-attack.yaml --dataset parquet:DIR --epochs 2 --examples 100

The jobs run one after the other in this process. `--cold` estimates the study on an empty store; `--warm` estimates it
once more, with other seeds, after it has run, so that the store knows jobs like these. `--clock cpu` counts the seconds
of this process's own computing on one thread, in estimates as in measurements: what a machine that others use takes
from it is in neither.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustlib.number_text import counted
from robustq.jobs.queue import claims, driver_jobs, drivers, transitions
from robustq.jobs.queue.status import any_unfinished
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.run import run
from robustq.jobs.specs import EvalSpec, TrainSpec, parse
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.submission.expand_study import expand
from robustq.jobs.submission.on_this_machine import make_estimator
from robustq.jobs.submission.plan import Planned, Resolved
from robustq.jobs.submission.study_sources import resolve_file
from robustq.jobs.submission.submit import record
from robustq.jobs.submission.wall_time import Slots
from robustq.jobs.text import tables

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
LONG_SECONDS = 5.0  # from which on a job counts for the goal: median factor at most 1.5, none above 3
DRIVER = "estimates"


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    changes = {name: getattr(options, name) for name in ("dataset", "examples", "epochs")}
    resolved = resolve_file(options.study, changes)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(str(Path(folder, "r.db")), create=True, write=True)
        with store.begin() as db:
            drivers.register(db, DRIVER, "here", 1, 0.0, "0")
        found = list(told("cold", estimated(store, resolved, options.threads, clock)))
        if options.warm:
            other = with_seeds(resolved, [seed + 1000 for seed in resolved.study.seeds])
            found += told("warm", estimated(store, other, options.threads, clock))
    print("\n" + tables.table(found))
    for which in dict.fromkeys(row["store"] for row in found):
        for least in (0.0, LONG_SECONDS):
            print(
                summary(
                    f"{which} store, jobs of {least:g} s and more", [r for r in found if r["store"] == which], least
                )
            )
    if options.out is not None:
        options.out.write_text(json.dumps(found))


def told(which: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines, each printed as soon as it is there: a long study may be cut off."""
    for row in rows:
        line = {"store": which} | row
        print(json.dumps(line), flush=True)
        yield line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart.yaml"))
    parser.add_argument("--dataset")
    parser.add_argument("--examples")
    parser.add_argument("--epochs", type=int)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--cold", action="store_true", help="on an empty store only; the default")
    how.add_argument("--warm", action="store_true", help="afterwards on the store that this has filled, too")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args()


def with_seeds(resolved: Resolved, seeds: list[int]) -> Resolved:
    study = resolved.study.model_copy(update={"seeds": list(seeds)})
    return replace(resolved, study=study, identity=f"{resolved.identity[:32]}{seeds!r}"[:64])


def estimated(store: Store, resolved: Resolved, threads: int, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """A line for each job, estimated before any of them runs. The radii of a search share its seconds."""
    plan = expand(resolved)
    start = time.perf_counter()
    estimates = make_estimator(store.url, resolved, plan, Slots(1, threads), clock=clock)
    chosen = [planned for planned in plan if isinstance(planned.spec, TrainSpec | EvalSpec)]
    expected = {planned.key: estimates.seconds(planned) for planned in chosen}
    print(f"{counted(len(chosen), 'job')} estimated in {time.perf_counter() - start:.1f} s", flush=True)
    with store.begin() as db:
        record(db, resolved, plan)
    searches = searches_of(plan)
    measured: dict[str, float] = {}
    by_key = {planned.key: planned for planned in chosen}
    for key, took in work_off(store, clock):
        measured[key] = took
        together = searches.get(key, [key])
        if not all(other in measured for other in together):
            continue
        each = sum(measured[other] for other in together) / len(together)
        yield from (line_of(by_key[other], expected[other], each) for other in together)


def line_of(planned: Planned, expected: float | None, took: float) -> dict[str, Any]:
    seconds = expected or float("nan")
    attack = planned.spec.attack if isinstance(planned.spec, EvalSpec) else None
    return {
        "model": planned.model,
        "job": planned.spec.kind if attack is None else attack.name,
        "norm": None if attack is None else attack.norm,
        "eps": None if attack is None else attack.eps,
        "expected": round(seconds, 2),
        "measured": round(took, 2),
        "factor": round(max(seconds / took, took / seconds), 2),
    }


def work_off(store: Store, clock: Callable[[], float]) -> Iterator[tuple[str, float]]:
    """Run the queue until it is empty: each job's key, and its seconds by this clock, which its row gets too: an equal
    share of them where it is one of several radii, the first of which runs them all.
    """
    whole = 0.0
    while True:
        with store.begin() as db:
            driver_jobs.settle_all(db, DRIVER, None)
            claimed = claims.claim(db, DRIVER, most=64)
            if not claimed and not any_unfinished(db):
                return
        for c in claimed:
            with store.begin() as db:
                transitions.start(db, c, DRIVER, "here", 1, "")
            spec = parse(c.spec)
            assert isinstance(spec, TrainSpec | EvalSpec)
            start = clock()
            *_, found = run(spec, Context("cpu", store.artifacts, weights=c.weights))
            took = clock() - start
            assert isinstance(found, Result)
            radii = spec.attack.curve if isinstance(spec, EvalSpec) else ()
            whole = took if not radii or c.spec["attack"]["eps"] == claimed[0].spec["attack"]["eps"] else whole
            row = found.row | ({} if clock is time.perf_counter else {"seconds": whole / max(len(radii), 1)})
            with store.begin() as db:
                blob = None if found.examples is None else (found.examples, found.row["n"])
                transitions.finish(db, c, row, blob, found.artifacts)
            yield c.key, took


def searches_of(plan: list[Planned]) -> dict[str, list[str]]:
    """For each job of a search at several radii the keys of all of them: the first that runs has run all."""
    found: dict[str, list[str]] = defaultdict(list)
    for planned in plan:
        if isinstance(planned.spec, EvalSpec) and planned.spec.attack.curve:
            attack = planned.spec.attack.model_copy(update={"eps": None})
            found[planned.spec.model_copy(update={"attack": attack}).key()].append(planned.key)
    return {key: keys for keys in found.values() for key in keys}


def summary(words: str, rows: list[dict[str, Any]], least: float) -> str:
    factors = [row["factor"] for row in rows if row["measured"] >= least]
    if not factors:
        return f"{words}: none"
    return f"{words}: {len(factors)}, median factor {statistics.median(factors):.2f}, worst {max(factors):.2f}"


if __name__ == "__main__":
    main()
