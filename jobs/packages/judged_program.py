"""A program judged: on clean and attacked images beside its network, and attacked itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from robustlib.datasets.choose import spread_by_class
from robustlib.datasets.lazy_images import LazyImages
from robustlib.datasets.load import Dataset
from robustlib.export.comparison import ACCURACY_LOSS, Compared, accuracy_lost, compare, tolerance
from robustlib.export.latency import latencies
from robustlib.export.square_attack import SQUARE, attack_program
from robustlib.metrics import wilson
from robustlib.models.onnx_model import onnx_model
from robustlib.number_text import counted
from robustlib.packages.golden import as_floats
from robustlib.packages.manifest import INT8, ONNX
from robustlib.packages.onnx_session import OnnxSession, runtime_version
from robustq.jobs.errors import SpecError
from robustq.jobs.packages.attacked_images import Attacked
from robustq.jobs.packages.card import Latency, Program, Reattack, Share
from robustq.jobs.packages.stored_numbers import Outcomes, Stored

Tell = Callable[[str], None]

FLOAT_WHY = (
    "a logit of the program may differ from the network's by a ten-thousandth of the largest: sums in another order "
    "differ by a tenth of that or less, a lost normalisation, another weight or fewer bits by ten times that and more. "
    "Square may break at most 2 % of the images, and one, that no stored attack within the radius had broken: of more, "
    "the stored numbers are not the program's"
)
INT8_WHY = (
    "8 bits move every logit, so that accuracies are the limit: clean, on the attacked images and under Square they "
    "may lie at most 2 points below the network's, where that is more than one image"
)


@dataclass(frozen=True)
class Judged:
    """What programs are judged with. images: bytes, of the golden images.  index: of the evaluation's examples.

    attacked: the evaluation's images; None where the store has none.  queries: of Square, an image.
    """

    network: nn.Module
    dataset: Dataset
    golden: np.ndarray
    stored: Stored
    attacked: Attacked | None
    queries: int
    seconds: float
    device: str

    def facts(self) -> dict[str, Any]:
        of = self.dataset
        return {"num_classes": of.num_classes, "in_channels": of.in_channels, "image_size": of.image_size}


def judge(about: Judged, onnx: bytes, file: str, tell: Tell) -> Program:
    """What a program does beside its network. Raises SpecError where that is beyond the limits."""
    precision: Any = {ONNX: "float32", INT8: "int8"}[file]
    session = OnnxSession(onnx, file)
    golden = compare(about.network, session, torch.from_numpy(about.golden))
    limit = tolerance(golden.network) if precision == "float32" else None
    rows = [clean_row(about, session)]
    check_difference(file, max(golden.difference, rows[0].largest_difference or 0.0), limit)
    if about.attacked is not None:
        rows.append(transfer_row(about, about.attacked, session))
        check_difference(file, rows[-1].largest_difference or 0.0, limit)
        tell(f"{file}: Square with {about.queries} queries on {counted(len(about.attacked.index), 'image')}")
        rows.append(square_row(about, about.attacked, onnx, file))
    for row in rows if precision == "int8" else rows[2:]:
        check_accuracy(file, row)
    differences = [golden.difference, *(row.largest_difference or 0.0 for row in rows)]
    threads = torch.get_num_threads()
    timed = latencies(OnnxSession(onnx, file, threads=threads), as_floats(about.golden), about.seconds)
    return Program(
        file=file,
        precision=precision,
        largest_difference=max(differences),
        tolerance=limit,
        accuracy_loss=ACCURACY_LOSS,
        why=FLOAT_WHY if limit is not None else INT8_WHY,
        rows=rows,
        latency=[Latency(**vars(one)) for one in timed],
        device=about.device,
        threads=threads,
        runtime=f"onnxruntime {runtime_version()}",
    )


def check_difference(file: str, found: float, limit: float | None) -> None:
    if limit is None and not math.isfinite(found):
        raise SpecError(f"{file} gives logits that are no finite numbers; no package is made of it")
    if limit is not None and not found <= limit:
        raise SpecError(
            f"{file} is not the network: a logit differs by {found:.3g}, expected at most {limit:.3g}, a "
            "ten-thousandth of the largest; no package is made of it"
        )


def check_accuracy(file: str, row: Reattack) -> None:
    """Raises SpecError where a program lies further below its network than its numbers may."""
    lost = accuracy_lost(row.network_accuracy or 0.0, row.program.accuracy, row.program.n)
    if lost <= ACCURACY_LOSS:
        return
    if row.what == SQUARE:
        why = "Square breaks more of it than all stored attacks: evaluate it by stronger ones, such as autoattack"
    else:
        why = f"on {row.what} images it is less accurate than the network"
    mend = "; leave out --int8" if file == INT8 else ""
    raise SpecError(
        f"{file} is less than its numbers: {row.program.accuracy:.3f} instead of {row.network_accuracy:.3f} of "
        f"{row.program.n} images, where {ACCURACY_LOSS:.2f} is allowed: {why}{mend}"
    )


def share(right: np.ndarray) -> Share:
    low, high = wilson(float(right.sum()), len(right))
    return Share(n=len(right), accuracy=float(right.mean()), low=low, high=high)


def compared_row(what: Any, found: Compared, index: np.ndarray, label: np.ndarray, **told: Any) -> Reattack:
    empty: dict[str, Any] = dict.fromkeys(("job", "attack", "norm", "eps", "queries", "seed"))
    return Reattack(
        what=what,
        program=share(found.program.argmax(1) == label),
        network_accuracy=float((found.network.argmax(1) == label).mean()),
        differing=[int(place) for place in index[found.differing]],
        largest_difference=found.difference,
        **empty | told,
    )


def clean_row(about: Judged, session: OnnxSession) -> Reattack:
    """The evaluation's originals; images from all over the split where there is none."""
    attacked = about.attacked
    index = spread_by_class(about.dataset.y, 500) if attacked is None else attacked.index
    x = LazyImages(about.dataset.images)[torch.tensor(index).long()]
    found = compare(about.network, session, x)
    if attacked is not None and about.stored.outcomes is not None:
        check_same_network(found, about.stored.outcomes["clean_prediction"][attacked.rows])
    return compared_row("clean", found, index, about.dataset.y[index])


def check_same_network(found: Compared, predicted: np.ndarray) -> None:
    """Raises SpecError where the network is not the one that was evaluated, as where its code draws fresh weights."""
    other = int((found.network.argmax(1) != predicted).sum())
    if other > max(1, len(predicted) / 100):
        raise SpecError(
            f"the network is not the one that was evaluated: its class differs for {other} of {len(predicted)} images; "
            "give the number of the evaluation, or the weights that it had"
        )


def transfer_row(about: Judged, attacked: Attacked, session: OnnxSession) -> Reattack:
    """The evaluation's attacked images, made on the network."""
    found = compare(about.network, session, torch.from_numpy(attacked.x_adv))
    primary, spec = about.stored.primary, about.stored.primary_spec
    assert primary is not None and spec is not None
    told = {"job": primary.job, "attack": primary.recipe, "norm": primary.norm, "eps": primary.eps, "seed": spec.seed}
    return compared_row("transfer", found, attacked.index, attacked.label, **told, note=attacked.note)


def square_row(about: Judged, attacked: Attacked, onnx: bytes, file: str) -> Reattack:
    """Square on the program, on the same images: and which it broke that no stored attack within the radius had."""
    primary, spec = about.stored.primary, about.stored.primary_spec
    assert primary is not None and primary.norm is not None and primary.eps is not None and spec is not None
    norm: Any = primary.norm
    outcome = attack_program(
        onnx_model(onnx, file, **about.facts()),
        LazyImages(about.dataset.images),
        torch.from_numpy(about.dataset.y),
        norm=norm,
        eps=primary.eps,
        queries=about.queries,
        seed=spec.seed,
        index=torch.tensor(attacked.index).long(),
        num_classes=about.dataset.num_classes,
    )
    broken = broken_by_any(about.stored.others, attacked.index)
    return Reattack(
        what=SQUARE,
        job=primary.job,
        attack=SQUARE,
        norm=norm,
        eps=primary.eps,
        queries=about.queries,
        seed=spec.seed,
        program=share(~outcome.success),
        network_accuracy=float((~broken).mean()),
        differing=[int(place) for place in outcome.index[outcome.success & ~broken]],
        largest_difference=None,
        note="the network's accuracy is what all stored attacks at this norm within this radius leave of the images",
    )


def broken_by_any(outcomes: Sequence[Outcomes], index: np.ndarray) -> np.ndarray:
    """Which of these examples some stored attack broke, (N,)."""
    fell = {int(place) for one in outcomes for place in one["index"][one["success"]]}
    return np.array([int(place) in fell for place in index])
