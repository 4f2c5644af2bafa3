"""Images that are proved to stand, and so are spared the attacks that would find nothing: no verdict depends on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.autoattack import Named
from robustlib.attacks.types import as_stage
from robustlib.bounds.proofs import Prover
from robustlib.bounds.traced_network import network_of
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.plans import MANY, Plan
from robustlib.inference.model_modes import as_images
from robustlib.inference.predict import predict

COMPARED = 16  # of the data set's first images, on which a network read from a model is compared with it
TRIED = 8  # of them, on which proofs are tried: by what they take and how many hold, the rest is proved or not
SLOWER = 2  # times as long as in an attack's passes, a multiplication takes in a proof: 1.5 to 3.5 on small networks
PATIENCE = 0.5  # of an image's attacks, that trials may cost more than they spare


@dataclass(frozen=True)
class BoundProofs:
    """Proofs by bounds: see `attack_sequence.Proofs`.

    prover: of one model.  radii: at which proofs pay.  eps: the radius, where it is the same for all examples.
    """

    prover: Prover
    radii: tuple[float, ...]
    before: int
    eps: float | None = None

    def at(self, eps: float) -> "BoundProofs":
        return replace(self, eps=eps)

    def hold(self, x: Tensor, y: Tensor, eps: Tensor | None) -> Tensor:
        radii = [self.eps] * len(x) if eps is None else eps.tolist()
        found = torch.zeros_like(y, dtype=torch.bool)
        for i, radius in enumerate(radii):
            if radius in self.radii:
                found[i] = self.prover.proof(x[i : i + 1], int(y[i]), radius).holds
        return found


def make_proofs(model: nn.Module, x: ImageSet, plan: Plan, norm: Norm, device: torch.device) -> BoundProofs | None:
    """None where no proof would be shorter than the attacks that it spares, or the model's layers are not known.

    Only before attacks of ours, which do nothing besides; only in Linf and on CPUs, where proofs were measured.
    x: the data set's images. The first of them decide, whatever is asked.
    """
    named, radii = plan[0][1], [eps for eps, _ in plan if eps is not None]
    before = min(1, len(named) - 1)
    spared = passes_of(named[before:])
    if norm != "Linf" or device.type != "cpu" or spared < MANY or len(radii) < len(plan):
        return None
    try:
        sample = as_images(x[:COMPARED], device)
        network = network_of(model, sample)
        guesses = predict(model, sample[:TRIED]).tolist()
    except Exception:  # tracing a user's model may raise anything, and memory be short: it is attacked without, then
        return None
    products = spared * network.products_back(len(network.nodes) - 1)
    prover = Prover(network, refined=SLOWER * Prover(network).most_products <= products)
    paying = tuple(paying_radii(prover, sample, guesses, radii, products))
    return BoundProofs(prover, paying, before, radii[0] if len(radii) == 1 else None) if paying else None


def passes_of(named: Sequence[Named]) -> int:
    """Passes of an example that stands, forward and back; 0 where an attack is not ours or is paid for by queries that
    proofs could not tell.
    """
    total = 0
    for name, attack in named:
        stage = as_stage(attack)
        known = ATTACKS.get(name)
        if not stage.is_ours or known is None or not known.defaults.keys() <= stage.defaults.keys():
            return 0
        if stage.counts_queries and name != "square":
            return 0
        work = known.cost(stage.defaults)
        total += work.forwards + work.gradients
    return total


def paying_radii(
    prover: Prover, x: Tensor, guesses: Sequence[int], radii: Sequence[float], products: int
) -> Iterator[float]:
    """The radii, rising, at which more multiplications are spared than proofs take. products: of an image's attacks."""
    for eps in radii:
        gain = 0.0
        for i, y in enumerate(guesses):
            proof = prover.proof(x[i : i + 1], y, eps)
            gain += products * proof.holds - SLOWER * proof.products
            if gain < -PATIENCE * products:
                return
        if gain <= 0:
            return
        yield eps
