"""Layers put around any network: normalisation in front, randomness inside, an expectation around."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.calls import Careful, ask


class Normalize(nn.Module):
    """(x - mean) / std by channel: the first layer of every model, so that eps means the same everywhere."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class InferenceDropout(nn.Module):
    """Dropout that stays on when the model is evaluated: a randomised network."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


def dropout_at_inference(model: nn.Module, *, p: float = 0.5) -> nn.Module:
    """The same model with every dropout layer active at inference too, at rate p. Changes the model in place."""
    if not 0 < p < 1:
        raise ValueError(f"expected dropout_at_inference between 0 and 1, got {p}")
    layers = [name for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, nn.Dropout)]
    if not layers:
        raise ValueError("dropout_at_inference needs a model with dropout layers, this one has none")
    for name in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, InferenceDropout(p))
    return model


class Expectation(Careful, nn.Module):
    """Logits averaged over draws of a randomised model.

    An attack on it climbs the expectation over the randomness: Athalye et al. 2018, https://arxiv.org/abs/1802.00420.
    """

    def __init__(self, model: nn.Module, draws: int):
        super().__init__()
        self.model = model
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([ask(self.model, x) for _ in range(self.draws)]).mean(0)


@torch.no_grad()
def is_randomised(model: nn.Module, x: Tensor, *, draws: int = 20, tolerance: float = 1e-4) -> bool:
    """Whether the model changes its answer: logits of the same images differ by more than rounding between draws."""
    first = ask(model, x)
    return any(not torch.allclose(ask(model, x), first, rtol=tolerance, atol=tolerance) for _ in range(draws - 1))
