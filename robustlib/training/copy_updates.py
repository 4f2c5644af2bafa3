"""The search copy of a model in training, brought up to date at every step and looked at every epoch."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from robustlib.inference.batch_sizes import batch_sizes
from robustlib.inference.copy_agreement import beyond, compare, known_slopes
from robustlib.inference.fast_copy import attempt, halves, search_replica, suits_half
from robustlib.inference.folded_layers import refresh
from robustlib.inference.graph_rewriting import fold
from robustlib.inference.model_modes import evaluating, layout, strict_float32
from robustlib.inference.replica import Replica
from robustlib.model_calls import ask


class TrackingCopy:
    """A search copy of a model whose weights change. Called, it brings the copy up to date and gives it.

    replicas: the forms that there are, the quickest first.  replica: the one in use.
    """

    def __init__(self, model: nn.Module, sample: Tensor, replicas: list[Replica]):
        self.model, self.sample = model, sample
        # The model itself computes what half precision cannot: as it is then, in eval mode, as attacks see it.
        self.exact = Replica(model, sizes=batch_sizes(sample), memory_format=layout(model))
        self.replicas = [e if e.precision == torch.float32 else e.but(spare=self.exact) for e in replicas]
        self.replica: Replica | None = self.replicas[0]

    def choose(self) -> str:
        """Compare the forms with the model at its weights of now, and use the first that agrees; its mode, in words.

        To be asked every epoch: what was right for fresh weights need not be so for later ones.
        """
        given_up: list[str] = []
        with evaluating(self.model), strict_float32():
            reference, slopes = self.exact(self.sample), known_slopes(self.exact, self.sample)
            for replica in self.replicas:
                refresh_replica(replica)
                alone = replica.but(spare=None)
                fault = compare(alone, self.sample, reference, slopes, sizes=(len(self.sample),))[1]
                fault = fault or beyond(alone, self.exact, self.sample, slopes)
                replica.count.clear()
                if not fault:
                    self.replica = replica
                    break
                given_up.append(f"{replica.mode}: {fault}")
            else:
                self.replica = None
        mode = "float32, as given" if self.replica is None else self.replica.mode
        return f"{mode} (given up: {'; '.join(given_up)})" if given_up else mode

    @property
    def overflows(self) -> int:
        """Examples since the last choice that were beyond the copy's range, and were computed in float32."""
        return 0 if self.replica is None else self.replica.count.overflows

    def __call__(self) -> nn.Module:
        if self.replica is None:
            return self.model
        refresh_replica(self.replica)
        return self.replica


def refresh_replica(replica: Replica) -> None:
    refresh(cast(nn.Module, replica.net))  # what `fold` made


def tracking_copy(model: nn.Module, sample: Tensor) -> TrackingCopy | None:
    """A search copy of a model whose weights change.

    None where the model has parts that cannot be followed: then it must be attacked itself.
    """
    half = suits_half(model, sample.device)
    ways = [
        partial(search_replica, folded_copy, model, dtype, batch_sizes(sample, dtype), False)
        for dtype in (*(halves(sample.device) if half else ()), torch.float32)
    ]
    with evaluating(model), torch.no_grad():
        reference = ask(model, sample)
        replicas = [replica for way in ways if (replica := attempt(way, sample, reference)) is not None]
        for replica in replicas:
            replica.see_all()  # later the model has other weights
    return TrackingCopy(model, sample, replicas) if replicas else None


def folded_copy(model: nn.Module) -> tuple[nn.Module, str]:
    net = fold(model)
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    if any(id(tensor) in own for tensor in (*net.parameters(), *net.buffers())):
        raise ValueError("the model has weights outside of convolutions, linear layers and their BatchNorm")
    return net, "folded"
