"""What `transfer` makes its images on: another model of the study, or a network that learns the model's answers."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from jobs.material import Context, load_data
from jobs.ready import given, make_model_ready
from jobs.specs import DataRef, EvalSpec
from robustlib.attacks.cascade import predict
from robustlib.attacks.surrogate import MOST, train_surrogate
from robustlib.crew import threads_of
from robustlib.draws import seeded
from robustlib.engine import Engine
from robustlib.evaluate import Ready, make_ready
from robustlib.models.layers import Expectation
from robustlib.modes import as_images, evaluating, strict_float32
from robustlib.outcome import Outcome
from robustlib.settings import TRANSFER

FEWEST = 100  # images that a network can learn anything from


@dataclass(frozen=True)
class Surrogate:
    """ready: the surrogate.  learnt_from: images whose answers it learnt, in words.  queries: how many those were.

    seconds: that it took to learn them. None and 0 for a model that was given.
    """

    ready: Ready
    learnt_from: str | None = None
    queries: int = 0
    seconds: float = 0.0

    @property
    def engine(self) -> Engine:
        return self.ready.as_surrogate()

    def told(self, outcome: Outcome, x: Tensor, device: torch.device) -> dict[str, Any]:
        """What the row says of it. agreement: share of the originals, of which x are all, that both classify alike."""
        assert self.ready.engines is not None  # or it would be no surrogate
        exact = self.ready.engines.exact
        images = as_images(x[torch.from_numpy(outcome.index).long()], device)
        with strict_float32():
            found = torch.cat([predict(exact, part) for part in images.split(256)]).cpu().numpy()
        agreement = float((found == outcome.clean_prediction).mean())
        about = {"learnt_from": self.learnt_from, "queries": self.queries, "seconds": self.seconds}
        return about | {"agreement": agreement}


def surrogate_of(spec: EvalSpec, context: Context) -> Surrogate | None:
    """The surrogate of an evaluation that needs one."""
    if spec.attack.name != TRANSFER:
        return None
    named = spec.attack.surrogate
    if named is not None:
        return Surrogate(make_model_ready(*given(named.model, named.train, spec, context)))
    return learn(given(spec.model, spec.train, spec, context), spec.examples, spec.eot_draws)


@lru_cache(maxsize=1)
def learn(model: Any, examples: int | str, eot_draws: int) -> Surrogate:
    """A network trained on the model's answers to images that are not evaluated, if there are others.

    model: the arguments of make_model_ready.
    """
    start = time.perf_counter()
    _, place, sha256, seed, _, _, name, *_ = model
    ready, device = make_model_ready(*model), torch.device(name)
    images, words = pool(DataRef(place=place, sha256=sha256), examples)
    asked = Expectation(ready.model, eot_draws) if ready.engines is None else ready.engines.exact
    # One thread: sums over several may differ in their last bits, and a replay must come to the same network.
    with strict_float32(), evaluating(ready.model), threads_of(1), seeded(seed, "surrogate", device):
        net = train_surrogate(asked, as_images(images, device), ready.classes, seed=seed)
    found = make_ready(net, images, ready.classes, device)
    return Surrogate(found, words, len(images), time.perf_counter() - start)


def pool(ref: DataRef, examples: int | str) -> tuple[Tensor, str]:
    """Images to learn from, at most MOST, and which they are."""
    test = torch.from_numpy(load_data(ref, "test").x)
    try:
        return torch.from_numpy(load_data(ref, "train").x)[:MOST], "the training split"
    except (ValueError, FileNotFoundError):  # a data set to attack only has none
        n = len(test) if examples == "all" else int(examples)
    rest = test[n : n + MOST]
    return (
        (rest, "the test split, images not attacked") if len(rest) >= FEWEST else (test[:MOST], "the attacked images")
    )
