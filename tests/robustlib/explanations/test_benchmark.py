"""`benchmarks/explanations.py`, small: the same maps as captum's, and a line of JSON a library."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
OURS = ("explanations", "captum_maps", "pass_floor")


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield pytest.importorskip("explanations")
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # captum's
def test_maps_are_captums_and_every_library_has_its_line(bench: Any, tmp_path: Path, own_threads: None):
    out = tmp_path / "rows.jsonl"
    sizes = {"examples": 4, "few": 2, "same": 1, "runs": 1, "threads": 1, "samples": 200, "batch-size": 40}
    asked = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    asked += ["--dataset", "digits", "--model", "lenet5", "--out", str(out)]
    result = CliRunner().invoke(bench.main, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ours = {row["method"]: row for row in rows if row["library"] == "robustq"}
    assert ours.keys() == set(bench.EXPLANATIONS) and len(rows) == 3 * len(ours) + 2
    for name, row in ours.items():
        # captum weighs the two ends of KernelSHAP by a million where ours has them exact.
        assert row["largest_difference"] < (1e-2 if name == "kernel-shap" else 1e-4), name
        assert row["ms_an_image"] > 0 and row["times"] > 0
    passes = ours["integrated-gradients"]
    assert (
        passes["times_floor"] > 0
        and passes["times_whole"] > 0
        and max(passes["off_float64"], passes["captum_off_float64"]) < 1e-4
    )
    assert {name for name, row in ours.items() if row["goal"]} == {"integrated-gradients", "kernel-shap"}
