"""Randomised models: the expectation of their logits over draws."""

import torch
from torch import Tensor, nn

from robustlib.inference.oracle import Oracle
from robustlib.model_calls import ask


class Expectation(Oracle):
    """Logits averaged over draws of a randomised model.

    An attack on it climbs the expectation over the randomness: Athalye et al. 2018, https://arxiv.org/abs/1802.00420.
    """

    def __init__(self, model: nn.Module, draws: int):
        super().__init__()
        self.model = model
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([ask(self.model, x) for _ in range(self.draws)]).mean(0)

    def is_done(self, x: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
        """None: where the mean of the draws is only just wrong, half of the draws may be right, and every further step
        leaves fewer of them so.
        """
        return torch.zeros_like(claimed)

    def once_more(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.logits(x)


@torch.no_grad()
def is_randomised(model: nn.Module, x: Tensor, *, draws: int = 20, tolerance: float = 1e-4) -> bool:
    """Whether the model changes its answer: logits of the same images differ by more than rounding between draws."""
    first = ask(model, x)
    return any(not torch.allclose(ask(model, x), first, rtol=tolerance, atol=tolerance) for _ in range(draws - 1))
