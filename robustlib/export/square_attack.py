"""Square on a program itself: what its logits alone let an attacker find."""

from functools import partial

import torch
from torch import Tensor

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.models.black_box import BlackBoxModel
from robustlib.outcome import Outcome, join

SQUARE = "square"


def attack_program(
    program: BlackBoxModel,
    x: ImageSet,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    queries: int,
    seed: int,
    index: Tensor,
    num_classes: int,
) -> Outcome:
    """What Square does to the chosen images of a data set, x and y; every verdict is the program's.

    index: which images.  queries: of each.  An image's random numbers are those of any evaluation with this seed.
    """
    device = torch.device("cpu")
    attack = partial(ATTACKS[SQUARE], norm=norm, eps=eps, queries=queries)
    ready = make_ready(program, x, num_classes, device)
    found = evaluate_batches(
        ready.model, x, y, [(SQUARE, attack)], norm=norm, eps=eps, seed=seed, index=index, device=device, ready=ready
    )
    return join([batch.outcome for batch in found])
