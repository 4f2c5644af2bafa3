"""The lines of Python with which a package runs where there is only onnxruntime, NumPy and Pillow."""

from robustq.jobs.packages.card import Card

SNIPPET = """
import json, sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

package = Path("{folder}")  # this folder
card = json.loads((package / "card.json").read_text())
session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])


def classify(path):
    takes = card["preprocessing"]
    height, width = takes["size"]
    image = Image.open(path).convert("{mode}").resize((width, height))
    x = np.asarray(image, np.float32).reshape(height, width, -1).transpose(2, 0, 1) / 255
    (logits,) = session.run(None, {{takes["input"]: x[None]}})
    return card["classes"][int(logits[0].argmax())], logits[0]


for path in sys.argv[1:]:
    print(path, *classify(path))
"""


def snippet(card: Card, folder: str) -> str:
    """The lines, for a package that lies in this folder."""
    mode = "L" if card.preprocessing.channels == 1 else "RGB"
    return SNIPPET.strip().format(folder=folder, mode=mode) + "\n"
