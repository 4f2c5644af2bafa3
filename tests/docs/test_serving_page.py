"""The page on serving: its Python and its curl run against a server, and its tables name what there is."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robustq.jobs.serving.application import make_application
from tests.helpers.served import FACTS, Colours, means, picture, running, some_images

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8502"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "image.png").write_bytes(picture(some_images(1)[0]))
    np.save(tmp_path / "images.npy", some_images(4))
    with running(make_application(Colours(), FACTS)) as port:
        yield port


@pytest.mark.slow
def test_its_python_gives_the_class_of_the_picture(port: int, tmp_path: Path):
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    lines = lines.replace(ADDRESS, f"http://127.0.0.1:{port}")
    done = subprocess.run([sys.executable, "-I", "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = means(some_images(1))
    assert done.stdout == f"{FACTS.classes[row.argmax()]} {row.tolist()} {FACTS.digest}\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_its_lines_for_curl_get_what_they_ask_for(port: int, tmp_path: Path):
    lines = [line for line in PAGE.splitlines() if line.startswith("curl ")]
    assert len(lines) == 5
    words = "\n".join(
        line.replace(ADDRESS, f"http://127.0.0.1:{port}").replace("curl", "curl -sf", 1) for line in lines
    )
    done = subprocess.run(["bash", "-ec", words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, four, health, card, *metrics = done.stdout.splitlines()
    assert (one.count('"label"'), four.count('"label"')) == (1, 4)
    assert '"status":"ok"' in health and card == "# colours" and "robustq_images_total 5.0" in metrics


def test_its_tables_name_every_address_and_every_status():
    application = make_application(Colours(), FACTS)
    paths = {route.path.replace(FACTS.name, "NAME") for route in application.routes}  # pyright: ignore (routes with paths)
    addresses = PAGE.partition("| address |")[2].partition("\n\n")[0]
    assert {path for path in paths if f"{path}`" not in addresses} == set()
    code = "".join(path.read_text() for path in (Path(__file__).parents[2] / "jobs" / "serving").glob("*.py"))
    statuses = {*re.findall(r"Refused\(\s*(4\d\d|5\d\d)", code)}
    assert {"400", "413", "500", "503"} <= statuses
    said = PAGE.partition("| status |")[2].partition("\n\n")[0]
    assert {status for status in statuses if status not in said} == set()
