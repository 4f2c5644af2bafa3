"""Marks of what a study asks for and what is computed otherwise than once.

They are part of the study's identity: without them the store would know a study from before whole, and its results
would stand for today's. Each says of which entries a field of the jobs' specs is set (`robustq.jobs.specs.MARKS` and
`ModelSpec.first_layer`), and is left out where there are none, so that other studies stay what they were.
"""

from collections.abc import Mapping
from typing import Any

from robustlib.settings import AUDIT, EXPLAIN, GRADIENT_SUMS, TRANSFER
from robustq.jobs.specs import ModelSpec
from robustq.jobs.study.entries import StudyAttack
from robustq.jobs.study.study import Study


def study_marks(study: Study, models: Mapping[str, ModelSpec]) -> list[dict[str, Any]]:
    """A mark for each thing that this study asks for, in the order in which they came about."""
    attacks = list(enumerate(study.attacks))
    audited = [i for i, one in attacks if one.name == AUDIT]
    audits = bool(audited) or study.audit == "full"
    # `normalize` of a user's code, which was not used once.
    layered = [label for label, model in models.items() if model.first_layer]
    # Transfer in L1, whose steps were coarser where its model is asked on the way.
    finer = [i for i, one in attacks if one.name == TRANSFER and "queries" in one.params and one.norm == "L1"]
    # Surrogates that learn the model's answers, of images that may lie by class: whether they do, the data say.
    learns = [i for i, one in attacks if one.name == AUDIT or is_learnt(one)]
    # Explanations that are sums of gradients, which had other last bits.
    sums = [i for i, one in attacks if one.name == EXPLAIN and sums_gradients(one)]
    marks = (
        ("first_layer", layered, bool(layered)),
        ("whole_steps", finer, bool(finer)),
        ("spread_pool", learns, bool(learns) or audits),
        ("surrogate_gradients", audited, audits),  # audits, whose surrogates of parts without a gradient had none
        ("split_sums", sums, bool(sums)),
    )
    return [{name: places} for name, places, there in marks if there]


def is_learnt(attack: StudyAttack) -> bool:
    """Whether its images are made on a network that learns the model's answers."""
    return attack.name == TRANSFER and attack.surrogate is None


def sums_gradients(entry: StudyAttack) -> bool:
    """Whether a method of an explanation entry is a sum of gradients, as the one is where none is named."""
    given = entry.params.get("method", GRADIENT_SUMS[0])
    methods = given if isinstance(given, list | tuple) else [given]
    return any((one.get("name") if isinstance(one, dict) else one) in GRADIENT_SUMS for one in methods)
