"""ONNX programs written by hand, whose answers are known."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def linear_program(
    weight: np.ndarray,
    bias: np.ndarray,
    image: tuple[int, int, int],
    *,
    batch: int | str = "batch",
    last: str | None = None,
    external: str | None = None,
) -> bytes:
    """Images of this shape, flattened, times `weight`, (pixels, classes), plus `bias`.

    batch: how many images it takes; a name for any number.  last: one more operation on the rows.  external: a file in
    which the weight is said to lie.
    """
    tensors = [numpy_helper.from_array(weight.astype(np.float32), "w")]
    tensors += [numpy_helper.from_array(bias.astype(np.float32), "b")]
    if external is not None:
        tensors[0].ClearField("raw_data")
        tensors[0].data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(4 * weight.size))):
            entry = tensors[0].external_data.add()
            entry.key, entry.value = key, value
    rows = "rows" if last else "logits"
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], [rows])]
    nodes += [helper.make_node(last, [rows], ["logits"])] if last else []
    return program(nodes, tensors, [batch, *image], [batch, weight.shape[1]])


def program(nodes: list[Any], tensors: list[Any], takes: list[Any], gives: list[Any], kind: int = 1) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", kind, takes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, gives)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def with_class_names(data: bytes, names: str) -> bytes:
    """The program with another text as the names of its classes."""
    model = onnx.load_model_from_string(data)
    (entry,) = [entry for entry in model.metadata_props if entry.key == "classes"]
    entry.value = names
    return model.SerializeToString()
