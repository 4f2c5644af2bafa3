"""The cost of a report, and the delay until the live page shows a new result, on a made-up sweep.

    python benchmarks/report.py                                    # 500 results of 400 examples each
    python benchmarks/report.py --models 250 --examples 200        # 5,000 results

Every model has five radii of three attacks and a worst case, a training of 30 epochs, and ten kept images.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from robustlib.number_text import counted
from robustq.jobs.report.server import Pages
from robustq.jobs.store.connection import open_store
from tests.helpers.fake_results import add_result
from tests.helpers.fake_sweep import columns, fill

ROOT = Path(__file__).parents[1]
RADII = (0.02, 0.05, 0.1, 0.15, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=25)
    parser.add_argument("--examples", type=int, default=400, help="At most the 449 that the digits' test split has.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, page = Path(folder) / "results.db", Path(folder) / "report.html"
        store = open_store(str(file), create=True, write=True)
        models = {f"model-{i:03d}": 0.1 + 0.02 * i for i in range(options.models)}
        sweep_id = fill(store, models, n=options.examples, radii=RADII, epochs=30, images=10)
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "cli",
            "--store",
            str(file),
            "report",
            "--sweep",
            "made-up",
            "--out",
            str(page),
        ]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        rows = options.models * len(RADII) * 4
        took = time.perf_counter() - start
        print(f"robustq report: {counted(rows, 'result')}, {took:.2f} s, {page.stat().st_size:,} bytes")
        pages = Pages(open_store(str(file)))
        timed("live page, first", lambda: pages.live(None))
        timed("live page, asked whether anything changed", lambda: pages.tag(None))
        with store.begin() as db:
            add_result(db, sweep_id, "newcomer", "pgd", 0.1, columns=columns(0.5, 0.1, "pgd", options.examples))
        timed("live page, after a new result", lambda: pages.live(None))


def timed(what: str, call: Callable[[], object]) -> None:
    start = time.perf_counter()
    call()
    print(f"{what}: {time.perf_counter() - start:.3f} s")


if __name__ == "__main__":
    main()
