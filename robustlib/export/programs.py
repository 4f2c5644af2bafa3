"""A network as programs: `model.onnx` for ONNX Runtime, `model.pt2` for torch, for any number of images."""

import inspect
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.inference.model_modes import evaluating, strict_float32
from robustlib.inference.wrappers import unwrapped
from robustlib.packages.onnx_session import CLASSES, check_installed, first_line

INPUT, OUTPUT, BATCH = "images", "logits", "batch"


@dataclass(frozen=True)
class Programs:
    """onnx, pt2: the files' bytes.  parameters: numbers that the network has learnt.  opset: of ONNX."""

    onnx: bytes
    pt2: bytes
    parameters: int
    opset: int


def export_programs(model: nn.Module, x: Tensor, classes: Sequence[str] = ()) -> Programs:
    """The model as programs from images, float32 in [0, 1], shape (B, C, H, W), to logits, for any B.

    x: two images: of one, torch would make a program for one.  classes: their names, in the order of the logits; the
    ONNX program has them in its metadata. Raises ValueError for a model that cannot be exported.
    """
    if len(x) != 2:
        raise ValueError(f"expected two images to export by, got {len(x)}")
    # A copy: layouts of weights that suit a CPU are nobody else's business.
    net = unwrapped(model).to("cpu", memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    x = x.detach().to("cpu").contiguous()
    with evaluating(net), strict_float32(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters about themselves: what they make is compared with the model
        program = exported(net, x)
        onnx = onnx_program(program)
        file = io.BytesIO()
        torch.export.save(program, file)
    entry = onnx.metadata_props.add()
    entry.key, entry.value = CLASSES, json.dumps(list(classes))
    opset = next(entry.version for entry in onnx.opset_import if entry.domain in ("", "ai.onnx"))
    numbers = sum(parameter.numel() for parameter in net.parameters())
    return Programs(onnx.SerializeToString(), file.getvalue(), numbers, opset)


def exported(net: nn.Module, x: Tensor) -> Any:
    """The graph of torch.export, without the places of the files that it was traced from."""
    for name, layer in net.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            part = f"its layer {name!r}" if name else "it"
            raise ValueError(
                f"the model cannot be exported by torch.export: {part} is TorchScript: "
                "expected the module that was scripted or traced"
            )
    axes: Any = ({0: torch.export.Dim(BATCH)},)
    first = next(iter(inspect.signature(net.forward).parameters.values()), None)
    if first is not None and first.kind is first.VAR_POSITIONAL:  # its images are one tuple, by forward(*args)
        axes = (axes,)
    try:
        # Not strict, as newer PyTorch does it: 2.6 failed where torch.compile had given up another model before.
        program = torch.export.export(net, (x,), dynamic_shapes=axes, strict=False)
    except Exception as error:  # tracing a user's model may raise anything
        raise ValueError(f"the model cannot be exported by torch.export: {told(error)}") from error
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def onnx_program(program: Any) -> Any:
    """The same as an ONNX model: its batch axis named, and nothing in it that tells of this machine."""
    check_installed("an ONNX program", "onnx", "onnxscript")  # which torch.onnx asks for late
    try:
        if torch.__version__ < "2.7":  # which fails on what has one output there and three here
            program = program.run_decompositions(
                {torch.ops.aten._native_batch_norm_legit_no_training.default: batch_norm}
            )
        made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert made is not None  # it is where no file is named
        model = made.model_proto
    except Exception as error:
        raise ValueError(f"the model cannot be exported by torch.onnx: {told(error)}") from error
    graph = model.graph
    axis = graph.input[0].type.tensor_type.shape.dim[0]
    if not axis.dim_param:
        raise ValueError("the model's program takes one number of images alone: expected any number")
    traced = axis.dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == traced:
                size.dim_param = BATCH
    for part in (*graph.node, *graph.initializer, graph, model):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm in evaluation mode by sums and products, with the two empty tensors that PyTorch's operator has."""
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [1, -1] + [1] * (x.ndim - 2)
    return x * scale.reshape(shape) + shift.reshape(shape), x.new_zeros(0), x.new_zeros(0)


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(first_line(error).split())}"
