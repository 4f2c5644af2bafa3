"""A small study of explanations, and its store."""

from typing import Any

TRAIN = {"epochs": 2, "examples": 600, "validation_examples": 50}
EXPLAIN: dict[str, Any] = {
    "name": "explain",
    "method": [{"name": "integrated-gradients", "steps": 4}, "grad-cam"],
    "against": [{"name": "pgd", "steps": 3}, {"name": "explanation-attack", "steps": 4, "looks": 2}],
    "eps": 0.1,
    "curve_steps": 4,
}
STUDY: dict[str, Any] = {
    "name": "steady",
    "models": {
        "plain": {"arch": "lenet5", "train": TRAIN},
        "robust": {"arch": "lenet5", "train": TRAIN | {"objective": "pgd", "eps": 0.1, "steps": 2}},
    },
    "attacks": [{"name": "fgsm", "eps": 0.1}, EXPLAIN],
    "examples": 130,
    "images": 3,
}
AGAINST = ["clean", "noise", "pgd", "explanation-attack"]
