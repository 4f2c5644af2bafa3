"""The making of a package: the model exported, judged as it will run, and written down with what the store says."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from robustlib import KERNEL_VERSION, VERSION
from robustlib.datasets.choose import spread_by_class
from robustlib.datasets.lazy_images import LazyImages
from robustlib.datasets.load import Dataset, non_default
from robustlib.export.comparison import logits_of, margins, tolerance
from robustlib.export.programs import INPUT, OUTPUT, Programs, export_programs
from robustlib.export.quantisation import quantised
from robustlib.inference.expectation import is_randomised
from robustlib.inference.model_modes import as_images, evaluating, strict_float32
from robustlib.inference.wrappers import unwrapped
from robustlib.models import is_black_box
from robustlib.models.layers import Normalize
from robustlib.models.onnx_model import WithGradients
from robustlib.outcome import check_classes
from robustlib.packages.golden import Golden, golden_bytes
from robustlib.packages.manifest import CARD, GOLDEN, INT8, ONNX, PROGRAM, SCHEMA, TEXT, WEIGHTS
from robustlib.packages.onnx_session import OnnxSession, check_installed, runtime_version
from robustq.jobs.errors import RunError, SpecError
from robustq.jobs.packages import card, card_text, files, says
from robustq.jobs.packages.attacked_images import images_of
from robustq.jobs.packages.chosen_model import Chosen
from robustq.jobs.packages.explanations import read_explanations
from robustq.jobs.packages.judged_program import Judged, judge
from robustq.jobs.packages.monitored import monitoring_of
from robustq.jobs.packages.stored_numbers import Stored, read_stored
from robustq.jobs.running.context import Context, cpu_name
from robustq.jobs.running.inputs import load_data, where_there
from robustq.jobs.running.package_models import defend
from robustq.jobs.running.warm_models import trained_model
from robustq.jobs.store.connection import Store

GOLDEN_IMAGES, CALIBRATION_IMAGES = 64, 256
INT8_TOLERANCE = 0.05  # of the largest logit: kernels for 8 bits round otherwise from CPU to CPU
CPU = torch.device("cpu")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """How a package is made. queries: of Square, an image.  examples: of the evaluation, at most.  int8: with a program
    in 8 bits.  anyway: also of a model whose evaluation failed a check.  seconds: that each latency may take.
    monitored: images that signals are measured on, at most; none are if it is 0.
    """

    queries: int = 1000
    examples: int = 500
    int8: bool = False
    anyway: bool = False
    seconds: float = 2.0
    monitored: int = 200


@dataclass(frozen=True)
class Made:
    """A package that was written. digest: SHA-256 of its card, and so of all that it names."""

    place: Path
    digest: str
    card: card.Card


def make_package(store: Store | None, chosen: Chosen, out: Path, asked: Asked, tell: Tell) -> Made:
    """Make a package of the model, a folder, or an archive where `out` ends with .zip.

    store: what was evaluated; None for a model that no store knows. Raises SpecError for a model that cannot be
    exported, whose program is not the network, or that failed a check.
    """
    files.check_place(out)
    mended(check_installed, "robustq package", "onnx", "onnxscript", "onnxruntime")
    dataset = found(load_data, chosen.data)
    stored, explained = Stored(), list[card.Explained]()
    if store is not None:
        with store.begin() as db:
            stored, explained = read_stored(db, chosen, dataset.names), read_explanations(db, chosen)
    if stored.failed and not asked.anyway:
        raise SpecError(f"{'; '.join(stored.failed)}: --anyway packages it all the same, and the card says so first")
    model, bare, names = network_of(store, chosen, dataset)
    tell(f"{chosen.name}: exported to {ONNX} and {PROGRAM}")
    programs = mended(export_programs, model, as_images(LazyImages(dataset.images)[:2], CPU), names)
    golden = golden_of(model, dataset)
    attacked = None
    if store is not None and stored.primary is not None:
        attacked = images_of(store, chosen, stored, asked.examples, tell)
    about = Judged(model, dataset, golden.images, stored, attacked, asked.queries, asked.seconds, f"cpu: {cpu_name()}")
    judged = [judge(about, programs.onnx, ONNX, tell)]
    parts = {ONNX: programs.onnx, PROGRAM: programs.pt2, WEIGHTS: weights_bytes(bare)}
    if asked.int8:
        parts[INT8] = in_eight_bits(programs.onnx, chosen)
        judged.append(judge(about, parts[INT8], INT8, tell))
        eight = OnnxSession(parts[INT8], INT8)
        golden.logits[INT8] = eight(as_images(torch.from_numpy(golden.images), CPU).numpy())
    parts[GOLDEN] = golden_bytes(golden)
    network = network_told(chosen, bare, programs)
    whole = card_of(chosen, dataset, stored, network, names, judged, golden, parts, programs.opset)
    whole = whole.model_copy(update={"explanations": explained})
    if asked.monitored:
        whole = whole.model_copy(update={"monitoring": monitoring_of(about, programs.onnx, asked.monitored, tell)})
    text = card_text.page(whole).encode()
    parts |= {TEXT: text, SCHEMA: card.schema_bytes()}
    whole = whole.model_copy(update={"files": named(parts)})
    data = card.card_bytes(whole)
    files.write(out, parts | {CARD: data})
    return Made(out, hashlib.sha256(data).hexdigest(), whole)


def found(call: Callable[..., Any], *args: Any) -> Any:
    """What a job needs: where it is gone or changed, a line says so."""
    try:
        return call(*args)
    except (FileNotFoundError, ValueError) as error:
        raise RunError(str(error)) from error


def mended(call: Callable[..., Any], *args: Any) -> Any:
    """Kernels that say by a ValueError what of the model they cannot take."""
    try:
        return call(*args)
    except ValueError as error:
        raise SpecError(str(error)) from error


def network_of(store: Store | None, chosen: Chosen, dataset: Dataset) -> tuple[nn.Module, nn.Module, list[str]]:
    """The model with its defences, on the CPU, the network inside of them, and the names of its classes. Raises
    SpecError for one that no program can stand for.
    """
    weights = {chosen.train: chosen.weights} if chosen.train and chosen.weights else {}
    context = Context("cpu", store.artifacts if store is not None else "", str(Path.cwd()), weights)
    inside = chosen.model.model_copy(update={"defence": ()})
    bare = found(trained_model, inside, dataset, chosen.seed, context, chosen.train)
    if is_black_box(bare) or any(isinstance(layer, WithGradients) for layer in bare.modules()):
        raise SpecError(f"{chosen.name} only answers, or is a program already: expected a network to be exported")
    bare = mended(unwrapped, bare).to(CPU)  # so that weights have the network's own names, and DataParallel no GPU
    model = defend(bare, chosen.model)
    some = as_images(LazyImages(dataset.images)[:16], CPU)
    with evaluating(model), strict_float32():
        classes = mended(check_classes, model, some, dataset.num_classes)
        if is_randomised(model, some):
            raise SpecError(f"{chosen.name} changes its answers from pass to pass: no program gives the same numbers")
    # Of classes that the data have no images of, the names are not known.
    return model, bare, [*dataset.names, *(f"class {label}" for label in range(dataset.num_classes, classes))]


def weights_bytes(bare: nn.Module) -> bytes:
    """The network's tensors, each with memory of its own: safetensors refuses those that share some."""
    kept = {name: value.detach().contiguous().clone() for name, value in bare.state_dict().items()}
    return safetensors.torch.save(kept)


def golden_of(model: nn.Module, dataset: Dataset) -> Golden:
    """Images from all over the split whose class no rounding can change, with the network's logits."""
    places = spread_by_class(dataset.y, 2 * GOLDEN_IMAGES)
    x = LazyImages(dataset.images)[torch.from_numpy(places)]
    logits = logits_of(model, x)
    clear = np.flatnonzero(margins(logits) > 2 * tolerance(logits))
    clear = clear[spread_by_class(dataset.y[places[clear]], GOLDEN_IMAGES)]
    if not len(clear):
        raise SpecError("the network gives every class of its images the same logit: there is nothing to package")
    images = np.ascontiguousarray(x[torch.from_numpy(clear)].numpy())
    index = places[clear].astype(np.int64)
    return Golden(images, dataset.y[index].astype(np.int64), index, {ONNX: logits[clear]})


def in_eight_bits(onnx: bytes, chosen: Chosen) -> bytes:
    """The program in 8 bits, calibrated on images from all over the training split."""
    train = None
    with where_there(chosen.data):
        train = load_data(chosen.data, "train")
    if train is None:
        raise SpecError("--int8 is calibrated on training images, and the data set has no training split: leave it out")
    places = torch.from_numpy(spread_by_class(train.y, CALIBRATION_IMAGES))
    x = as_images(LazyImages(train.images)[places], CPU).numpy()
    return mended(quantised, onnx, x, INPUT)


def named(parts: dict[str, bytes]) -> dict[str, card.File]:
    return {
        name: card.File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in sorted(parts.items())
    }


def card_of(
    chosen: Chosen,
    dataset: Dataset,
    stored: Stored,
    network: card.Network,
    names: list[str],
    judged: list[card.Program],
    golden: Golden,
    parts: dict[str, bytes],
    opset: int,
) -> card.Card:
    largest = float(np.abs(golden.logits[ONNX]).max())
    limits = {ONNX: tolerance(golden.logits[ONNX])} | (
        {INT8: INT8_TOLERANCE * largest} if INT8 in golden.logits else {}
    )
    return card.Card(
        name=chosen.name,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        made_with={
            "robustq": VERSION,
            "kernel": str(KERNEL_VERSION),
            "torch": torch.__version__,
            "onnxruntime": runtime_version(),
            "opset": str(opset),
        },
        warnings=says.warnings(stored),
        evaluated=bool(stored.evaluations),
        network=network,
        preprocessing=card.Preprocessing(
            input=INPUT,
            output=OUTPUT,
            layout="NCHW",
            channels=dataset.in_channels,
            size=dataset.image_size,
            colours=says.colours(dataset.in_channels),
            dtype="float32",
            range=(0.0, 1.0),
            from_bytes="divide by 255; normalisation is part of the program",
            reading=non_default(chosen.data.reading),
        ),
        classes=names,
        data=card.Data(name=says.data_name(chosen.dataset), split=dataset.split, sha256=chosen.data.sha256),
        clean=stored.clean,
        clean_by_class=stored.by_class,
        evaluations=stored.evaluations,
        training=stored.training,
        programs=judged,
        golden=card.Golden(file=GOLDEN, n=len(golden.images), tolerance=limits),
        not_said=says.not_said(stored, judged),
        files=named(parts),
    )


def network_told(chosen: Chosen, bare: nn.Module, programs: Programs) -> card.Network:
    spec, code = chosen.model, None
    first = next((layer for layer in bare.modules() if isinstance(layer, Normalize)), None)
    parts = {} if first is None else {"mean": first.mean, "std": first.std}
    if spec.code is not None:
        code = card.Code(name=spec.shown_arch, sha256=spec.code.sha256)
    return card.Network(
        arch=spec.arch,
        code=code,
        options=spec.options,
        defence=[card.Defence(name=part.name, params=part.params) for part in spec.defence],
        normalisation={name: value.flatten().tolist() for name, value in parts.items()} or None,
        parameters=programs.parameters,
        weights=chosen.weights or (spec.weights.sha256 if spec.weights is not None else None),
    )
