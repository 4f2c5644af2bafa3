"""Answers as JSON: in the form of /predict, and in that of the V1 protocol."""

from typing import Any

import numpy as np

from robustlib.number_text import distinct
from robustq.jobs.serving.answers import ABSTAINED, Answer, Certificate
from robustq.jobs.serving.batching import Answered
from robustq.jobs.serving.facts import Facts


def reply(found: Answered, facts: Facts, request: str) -> dict[str, Any]:
    """What /predict says. answers: one for each image, in their order."""
    signals = found.signals or [None] * len(found.answers)
    answers = [told(answer, facts, names) for answer, names in zip(found.answers, signals, strict=True)]
    return {"request": request, "model": facts.name, "package": facts.digest, "answers": answers}


def told(answer: Answer, facts: Facts, signals: tuple[str, ...] | None) -> dict[str, Any]:
    """label, class: null where the server abstains.  signals: null where nothing watches."""
    abstained = answer.label == ABSTAINED
    return {
        "label": None if abstained else answer.label,
        "class": None if abstained else facts.classes[answer.label],
        "abstained": abstained,
        "kind": answer.kind,
        "scores": scores(answer),
        "certificate": None if answer.certificate is None else certified(answer.certificate),
        "signals": None if signals is None else list(signals),
    }


def certified(found: Certificate) -> dict[str, Any]:
    """holds: of each stated radius, by its number, whether the class stays within it."""
    return {
        "norm": "L2",
        "holds": dict(zip(distinct(list(found.holds)), found.holds.values(), strict=True)),
        "sigma": found.sigma,
        "alpha": found.alpha,
        "votes": found.votes,
    }


def predictions(found: Answered) -> dict[str, Any]:
    """The V1 protocol: a row of logits, or of shares of votes, for each image."""
    return {"predictions": [scores(answer) for answer in found.answers]}


def scores(answer: Answer) -> list[float]:
    """Logits, or shares of all votes."""
    if answer.kind == "logits":
        return answer.scores.tolist()
    return (answer.scores / np.maximum(answer.scores.sum(), 1e-12)).tolist()
