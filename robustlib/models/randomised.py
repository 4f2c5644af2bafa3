"""Layers that make a network random when it is evaluated."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.arguments import check_value


class InferenceDropout(nn.Module):
    """Dropout that stays on when the model is evaluated: a randomised network."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


def dropout_at_inference(model: nn.Module, *, p: float = 0.5) -> nn.Module:
    """The same model with every dropout layer active at inference too, at rate p. Changes the model in place."""
    check_value("", "dropout_at_inference", float, p)
    layers = [name for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, nn.Dropout)]
    if not layers:
        raise ValueError("dropout_at_inference needs a model with dropout layers, this one has none")
    for name in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, InferenceDropout(p))
    return model
