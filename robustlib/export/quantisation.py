"""A program in 8 bits: ONNX Runtime's static quantisation, calibrated on training images."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.packages.onnx_session import NEEDS, first_line

BATCH = 32


class Images:
    """What the calibration reads: batches of images, by the name of the program's input."""

    def __init__(self, x: np.ndarray, name: str):
        self.parts: Iterator[np.ndarray] = iter([x[first : first + BATCH] for first in range(0, len(x), BATCH)])
        self.name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self.parts, None)
        return None if part is None else {self.name: part}


def quantised(onnx: bytes, x: np.ndarray, name: str) -> bytes:
    """An ONNX program with weights and activations in 8 bits, each channel of weights with a scale of its own.

    x: images that activations are measured on, float32 in [0, 1], shape (N, C, H, W).  name: of the program's input.
    Raises ValueError where ONNX Runtime cannot.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference
    except ImportError as error:
        raise ValueError(f"a program in 8 bits needs onnxruntime and onnx: {NEEDS} ({error})") from error
    kinds: Any = quantization.QuantType
    quiet = logging.getLogger()
    before = quiet.level
    quiet.setLevel(logging.ERROR)  # it tells of itself by the root of all loggers
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, prepared, made = (Path(folder) / f"{part}.onnx" for part in ("given", "prepared", "made"))
            given.write_bytes(onnx)
            # ONNX's own inference of shapes: the symbolic one gives up on shapes that a name stands in.
            shape_inference.quant_pre_process(given, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                made,
                Images(x, name),  # pyright: ignore[reportArgumentType]
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=kinds.QUInt8,
                weight_type=kinds.QInt8,
            )
            return made.read_bytes()
    except Exception as error:  # of many kinds
        raise ValueError(f"the program cannot be quantised: {type(error).__name__}: {first_line(error)}") from error
    finally:
        quiet.setLevel(before)
