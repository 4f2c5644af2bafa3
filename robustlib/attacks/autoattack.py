"""AutoAttack: the field's standard ensemble, as a list of attacks that run in turn."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from robustlib.arguments import Norm, checked_options
from robustlib.attacks.apgd import apgd, apgd_targeted
from robustlib.attacks.fab import fab, fab_targeted
from robustlib.attacks.square import square
from robustlib.attacks.types import AttackFunction
from robustlib.number_text import counted
from robustlib.settings import AUTOATTACK

Version = Literal["standard", "plus", "rand"]
Named = tuple[str, AttackFunction]
DLR_CLASSES, TARGETED_DLR_CLASSES = 3, 4


@dataclass(frozen=True)
class Recipe:
    """A list of attacks by name, and what of it the number of classes forbade."""

    id: str
    stages: list[Named]
    substitutions: tuple[str, ...] = ()


@checked_options
def autoattack(
    *, norm: Norm = "Linf", eps: float = 8 / 255, version: Version = "standard", classes: int = 10
) -> Recipe:
    """The recipe of AutoAttack, Croce and Hein 2020, https://arxiv.org/abs/2003.01690; for L1: 2021, 2103.01208.

    eps: in units of x.  version: "standard" and "plus" for fixed models, "rand" for randomised ones.
    classes: how many the model has: losses that need more are replaced by the margin, and targets are as many as there
    are other classes; each such substitution is named.
    """
    substitutions: list[str] = []
    budget = {"norm": norm, "eps": eps}
    dlr, targeted_dlr = "dlr", "dlr"
    if classes < DLR_CLASSES and version != "standard":
        dlr = "margin"
        substitutions.append(f"apgd-dlr: margin loss, since DLR needs {DLR_CLASSES} classes")
    if classes < TARGETED_DLR_CLASSES and version != "rand":
        targeted_dlr = "margin"
        substitutions.append(f"apgd-t: margin loss, since targeted DLR needs {TARGETED_DLR_CLASSES} classes")
    few = 5 if norm == "L1" and version == "standard" else 9
    if classes - 1 < few and version != "rand":
        targets = counted(classes - 1, "target, the only one there is", "targets, all that there are")
        substitutions.append(f"targeted attacks: {targets}")
    known: dict[str, AttackFunction] = {
        "apgd-ce": partial(apgd, **budget, loss="ce"),
        "apgd-dlr": partial(apgd, **budget, loss=dlr),
        "apgd-t": partial(apgd_targeted, **budget, loss=targeted_dlr, targets=few),
        "fab": partial(fab, **budget),
        "fab-t": partial(fab_targeted, **budget, targets=9),
        "square": partial(square, **budget, queries=5000),
    }
    match version:
        case "standard":
            order = ["apgd-ce"] * (5 if norm == "L1" else 1) + ["apgd-t", "fab-t", "square"]
        case "plus":
            order = ["apgd-ce"] * 5 + ["apgd-dlr"] * 5 + ["fab"] * 5 + ["square", "apgd-t", "fab-t"]
            if classes > 10:
                substitutions.append("fab: looks at the 10 classes ranked first")
        case "rand":
            order = ["apgd-ce", "apgd-dlr"]
    stages: list[Named] = []
    for name in order:
        # The first run of fab starts from the image itself, its repeats from random points.
        repeat = name == "fab" and any(earlier == name for earlier, _ in stages)
        stages.append((name, partial(known[name], random_start=True) if repeat else known[name]))
    return Recipe(AUTOATTACK.format(version=version), stages, tuple(substitutions))
