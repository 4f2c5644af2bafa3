"""Attacks over a data set: in turn, at several radii, on models that change their answers; certificates."""

from robustlib.evaluation.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
