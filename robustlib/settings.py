"""Terms and settings that specs and kernels share. Free of torch, so that reading a study stays quick."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from robustlib.arguments import NORMS as NORMS
from robustlib.arguments import Norm, check_value, check_width

CERTIFY = "certify"  # an evaluation that bounds from below: no attack, and in no worst case
# Evaluations of images as they then are, whatever becomes of the originals: accuracy on them, as its literature has it.
ON_ALL = frozenset({"corruption"})

NO_ATTACK = "clean"  # no attack, which has no parameter either
NO_RADIUS = frozenset({NO_ATTACK, "corruption"})  # attacks that take neither norm nor eps

# The recipe of AutoAttack as its rows name it: raise the number when its list of attacks or their settings change, and
# then put it into the spec too, left out of keys where it is 1: what rows are told apart by is read from there.
AUTOATTACK = "autoattack-{version}/1"
ONE_SEARCH = "radii as one search"  # ends the recipe of an attack that ran so
TRANSFER = "transfer"  # an attack whose images are made on another network: see robustlib.attacks.transfer
AUDIT = "audit"  # an evaluation that is no single attack: see robustlib.audit
EXPLAIN = "explain"  # an evaluation of explanations, not of accuracy: see robustlib.evaluation.explanation_stability
# What explanations are compared under, beside attacks on the class by their names.
NOISE, EXPLANATION_ATTACK = "noise", "explanation-attack"
# Explanations that are sums of gradients at several points of an image, and ask a model for nothing else.
GRADIENT_SUMS = ("integrated-gradients", "smoothgrad")
# Of a map beside that of the clean image, then of a map by itself too; what is measured of clean images alone.
SIMILARITIES = ("top_intersection", "near_top_intersection", "spearman", "ssim")
EXPLANATION_MEASURES = (*SIMILARITIES, "deletion", "insertion")
EXPLANATION_SANITY = ("random_weights", "gain", "random_gain")
STAGES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")  # what its examples may be broken by
BEYOND_HALF = ", beyond half precision in float32"  # ends the mode of an evaluation in which some examples were so


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    objective: one of robustlib.training.OBJECTIVES; `attack` holds the options of the attack that it trains on.
    learning_rate: peak of the schedule; 0.1 for SGD and 0.001 for Adam where none is given.
    crop: pixels by which images are padded before a random crop of the old size.  flip: mirror half of them.
    precision: "auto" is bfloat16 autocast where a CUDA device has it, float32 elsewhere.
    validation: share of the training split held out, of which `validation_examples` are looked at after every epoch,
    clean and under PGD with `validation_steps` steps in the `validation_norm` ball of radius `validation_eps`.
    keep: which epoch's weights are the result; "best" is by validation accuracy, attacked where training is.
    """

    objective: str = "standard"
    attack: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "onecycle"] = "onecycle"
    crop: int = 0
    flip: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    examples: int | Literal["all"] = "all"
    validation: float = 0.1
    validation_examples: int = 1000
    validation_norm: Norm = "Linf"
    validation_eps: float = 8 / 255
    validation_steps: int = 10
    keep: Literal["best", "last"] = "last"

    def __post_init__(self) -> None:
        for known in fields(self):
            check_value("", known.name, known.type, getattr(self, known.name))
        check_width("", "validation_eps", self.validation_norm, self.validation_eps)
