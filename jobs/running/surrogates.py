"""Surrogates for `transfer`: another model of the study, or a network that learns the model's answers."""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.attacks.surrogate_training import MOST, train_surrogate
from robustlib.datasets.choose import choose, is_lopsided, spread_by_class
from robustlib.datasets.lazy_images import ImageSet, LazyImages
from robustlib.datasets.load import Dataset
from robustlib.evaluation.batches import Ready, make_ready
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import as_images, evaluating, strict_float32
from robustlib.inference.predict import predict
from robustlib.inference.replica import Replica
from robustlib.inference.threads import threads_of
from robustlib.outcome import Outcome
from robustlib.rng import seeded
from robustlib.settings import TRANSFER
from robustq.jobs.running.context import Context
from robustq.jobs.running.inputs import load_data, where_there
from robustq.jobs.running.warm_models import given, make_model_ready
from robustq.jobs.specs import Count, DataRef, EvalSpec

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
    def replica(self) -> Replica:
        return self.ready.as_surrogate()

    def told(self, outcome: Outcome, x: ImageSet, device: torch.device) -> dict[str, Any]:
        """What the row says of it. agreement: share of the originals, of which x are all, that both classify alike."""
        assert self.ready.replicas is not None  # or it would be no surrogate
        exact = self.ready.replicas.exact
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
    chosen = spec.examples, spec.choose, spec.attack.spread_pool
    return learn(given(spec.model, spec.train, spec, context), *chosen, spec.eot_draws)


@lru_cache(maxsize=1)
def learn(model: Any, examples: Count, choose_by: str, all_over: bool, eot_draws: int) -> Surrogate:
    """A network trained on the model's answers to images that are not evaluated, if there are others.

    model: the arguments of make_model_ready.
    """
    start = time.perf_counter()
    _, ref, seed, _, _, name, *_ = model
    ready, device = make_model_ready(*model), torch.device(name)
    images, words = pool(ref, examples, choose_by, all_over=all_over)
    asked = Expectation(ready.model, eot_draws) if ready.replicas is None else ready.replicas.exact
    # One thread: sums over several may differ in their last bits, and a replay must come to the same network.
    with strict_float32(), evaluating(ready.model), threads_of(1), seeded(seed, "surrogate", device):
        net = train_surrogate(asked, as_images(images, device), ready.classes, seed=seed)
    found = make_ready(net, images, ready.classes, device)
    return Surrogate(found, words, len(images), time.perf_counter() - start)


def pool(ref: DataRef, examples: Count, choose_by: str = "first", *, all_over: bool = False) -> tuple[Tensor, str]:
    """Images to learn from, at most MOST, and which they are. all_over: of each class its share,
    instead of the first ones, see `AttackSpec`.
    """
    dataset, places, words = candidates(ref, examples, choose_by)
    chosen = places[spread_by_class(dataset.y[places], MOST)] if all_over else places[:MOST]
    return LazyImages(dataset.images)[torch.from_numpy(chosen)], words


def candidates(ref: DataRef, examples: Count, choose_by: str) -> tuple[Dataset, np.ndarray, str]:
    """All images that there are to learn from: their split, their places in it, and which they are."""
    dataset = load_data(ref)
    if ref.split != "train":
        with where_there(ref):  # a data set to attack only has none
            train = load_data(ref, "train")
            return train, np.arange(len(train)), "the training split"
    every = np.arange(len(dataset))
    rest = np.setdiff1d(every, choose(dataset.y, examples, choose_by))
    if len(rest) >= FEWEST:
        return dataset, rest, f"the {ref.split} split, images not attacked"
    return dataset, every, "the attacked images"


def pool_size(ref: DataRef, examples: Count, choose_by: str) -> int:
    """How many images `pool` has, of which none is decoded."""
    _, places, _ = candidates(ref, examples, choose_by)
    return min(MOST, len(places))


def lies_by_class(ref: DataRef, examples: Count, choose_by: str) -> bool:
    """Whether the first MOST images that there are to learn from are of few of their classes, as in a folder."""
    dataset, places, _ = candidates(ref, examples, choose_by)
    return is_lopsided(dataset.y[places], MOST)
