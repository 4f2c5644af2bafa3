"""The lines that the card prints run where there is only onnxruntime, NumPy and Pillow."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from robustlib.packages.golden import read_golden

# Whatever else is installed here cannot be imported there.
ALONE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "robustq", "robustlib", "onnx", "pydantic", "scipy"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Nothing())
"""


def test_the_lines_run_without_torch_and_robustq(place: Path, tmp_path: Path):
    golden = read_golden((place / "golden.npz").read_bytes())
    (lines,) = re.findall(r"```python\n(.*?)```", (place / "card.md").read_text(), re.S)
    assert len([line for line in lines.splitlines() if line.strip()]) <= 20
    names = []
    for k in range(8):
        names.append(str(tmp_path / f"{k}.png"))
        Image.fromarray(golden.images[k, 0]).save(names[-1])
    (tmp_path / "run.py").write_text(ALONE + lines)
    command = [sys.executable, "-I", str(tmp_path / "run.py"), *names]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = [re.findall(r"-?\d+\.\d*(?:e-?\d+)?", text) for text in done.stdout.split(str(tmp_path))[1:]]
    logits = np.array([row[1:] if len(row) > 10 else row for row in numbers], np.float32)
    classes = [text.split()[1] for text in done.stdout.split(str(tmp_path))[1:]]
    expected = golden.logits["model.onnx"][:8]
    assert classes == [str(label) for label in expected.argmax(1)]
    assert logits.shape == expected.shape and np.allclose(logits, expected, atol=1e-4)
