"""An ONNX program run by ONNX Runtime on this machine's CPU."""

import importlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

NEEDS = "pip install 'robustq[deploy]'"
CLASSES = "classes"  # of a program's metadata: the names of its classes, in order, as JSON


class OnnxSession:
    """A program that gives rows of numbers for images. It may be asked from several threads at once.

    data: the file's bytes.  name: what it is called in errors.  threads: that one call computes with.
    layout: "CHW" or "HWC", in which the program takes an image; calls are given (B, C, H, W).
    Raises ValueError for what is no such program.
    """

    def __init__(self, data: bytes, name: str, *, threads: int = 1, layout: str = "CHW"):
        runtime = library(name)
        check_self_contained(data, name)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what is wrong is raised
        try:
            self.session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own, of many kinds
            raise ValueError(f"{name} is no ONNX program that onnxruntime runs: {first_line(error)}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            shapes = f"{[value.shape for value in inputs]} to {[value.shape for value in outputs]}"
            raise ValueError(f"{name}: expected a program from one batch of images to one batch of rows, got {shapes}")
        if inputs[0].type != "tensor(float)":
            raise ValueError(f"{name}: expected a program of float32 images in [0, 1], got one of {inputs[0].type}")
        self.name, self.layout = name, layout
        self.takes, self.gives = inputs[0].name, outputs[0].name
        batch, *image = inputs[0].shape
        self.batch = batch if isinstance(batch, int) else None
        if layout == "HWC":
            image = [image[2], image[0], image[1]]
        self.image = tuple(size if isinstance(size, int) else None for size in image)
        last = outputs[0].shape[-1] if outputs[0].shape else None
        self.classes = last if isinstance(last, int) else None

    def __deepcopy__(self, memo: Any) -> "OnnxSession":
        return self  # it holds no state between calls, and cannot be copied

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Rows for images, float32, shape (B, C, H, W)."""
        if self.layout == "HWC":
            x = x.transpose(0, 2, 3, 1)
        x = np.ascontiguousarray(x, dtype=np.float32)
        if self.batch is None or len(x) == self.batch:
            return self.run(x)
        # A program of a fixed number of images gets so many each time.
        parts = [x[first : first + self.batch] for first in range(0, len(x), self.batch)]
        return np.concatenate([self.run(filled(part, self.batch))[: len(part)] for part in parts])

    def run(self, x: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(self.session.run([self.gives], {self.takes: x})[0])
        except Exception as error:
            raise ValueError(f"{self.name} fails on images of shape {x.shape}: {first_line(error)}") from error

    def class_names(self) -> list[str] | None:
        """The names that the program itself has for its classes; None where it has none."""
        text = self.session.get_modelmeta().custom_metadata_map.get(CLASSES)
        try:
            found = None if text is None else json.loads(text)
        except (ValueError, RecursionError):
            return None
        return [str(name) for name in found] if isinstance(found, list) else None

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless it takes images of this shape, (C, H, W)."""
        if any(mine is not None and mine != size for mine, size in zip(self.image, shape, strict=True)):
            mine = tuple("any" if size is None else size for size in self.image)
            raise ValueError(f"{self.name} takes images of shape {mine}, the data set has {shape}")


def filled(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[-1:], n - len(x), axis=0)]) if len(x) < n else x


def library(name: str, module: str = "onnxruntime") -> Any:
    """ONNX Runtime, or another module of the extra. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name} needs {module}: {NEEDS} ({error})") from error


def check_installed(name: str, *modules: str) -> None:
    """Raises ValueError unless all of these can be imported. name: of what needs them."""
    for module in modules:
        library(name, module)


def runtime_version() -> str:
    return str(library("its version").__version__)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def check_self_contained(data: bytes, name: str) -> None:
    """Raises ValueError for a program whose numbers lie in other files, which would be read from wherever it says."""
    onnx = library(name, "onnx")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own, of several kinds
        raise ValueError(f"{name} is no ONNX program: {first_line(error)}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors_of(model)):
        raise ValueError(f"{name} keeps numbers in other files: expected one file that holds them all")


def tensors_of(model: Any) -> Iterable[Any]:
    """Every tensor that a program holds, at any depth."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [attribute.g, *attribute.graphs]
