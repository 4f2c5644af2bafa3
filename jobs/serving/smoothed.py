"""The engine with certificates: the majority vote of the package's network over Gaussian noise. Loads torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import check_value
from robustlib.defences.votes import QuickVoter, make_voter
from robustlib.defences.votes_in_rounds import Decision, decide, rule_for
from robustlib.evaluation.batches import SAMPLE
from robustlib.inference.fast_copy import exact_replica, make_replicas, suits_half
from robustlib.inference.model_modes import evaluating, into_mode, strict_float32
from robustlib.inference.replica import Replica
from robustlib.models.onnx_model import onnx_model
from robustlib.number_text import counted
from robustlib.packages.golden import as_floats, read_golden
from robustlib.packages.manifest import GOLDEN, ONNX, Package
from robustlib.rng import Draws
from robustq.jobs.running.package_models import network_of
from robustq.jobs.serving.answers import Answer, Certificate, shape_and_names

GROUP = 8  # images whose votes a GPU makes from one recording


class Smoothed:
    """Votes of the package's network, in half precision where that is sure and quicker; of its program where the
    package has no network that can be built here.

    sigma, radii, alpha, n, n0: see `decide`; radii rise.  name: the program; of one in 8 bits its own votes count.
    device: where it computes; a GPU where there is one, if None.  threads: that a CPU computes with.
    seed: of the noise, for tests alone: a server whose noise is known can be shown images that it certifies wrongly.
    Raises ValueError for numbers that make no sense and radii that n votes cannot show, PackageError among them for a
    package that is not what it says.
    """

    def __init__(
        self,
        package: Package,
        *,
        sigma: float,
        radii: Sequence[float] = (),
        alpha: float = 0.001,
        n: int = 10_000,
        n0: int = 100,
        name: str = ONNX,
        device: str | None = None,
        threads: int = 1,
        seed: int | None = None,
    ):
        self.radii, self.options = tuple(radii), {"sigma": sigma, "alpha": alpha, "n": n, "n0": n0}
        for key, kind in {"sigma": float, "alpha": float, "n": int, "n0": int}.items():
            check_value("smoothing", key, kind, self.options[key])
        rule_for(self.radii, sigma, n=n - n0, alpha=alpha)
        self.image, self.classes = shape_and_names(package)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.threads, self.seed, self.answered = threads, seed, 0
        self.network = voting_network(package, name, self.image, len(self.classes)).to(self.device)
        into_mode(self.network, training=False)
        golden = as_floats(read_golden(package.read(GOLDEN)).images)[:SAMPLE]
        with self.computing():
            self.voter = voter_of(self.network, torch.from_numpy(golden).to(self.device), sigma)
        self.mode = f"sigma {sigma:g}, alpha {alpha:g}, at most {counted(n, 'vote')}; {self.voter.mode}"

    def answer(self, images: np.ndarray) -> list[Answer]:
        """Answers to images, float32 in [0, 1], shape (B, C, H, W); their scores are the shares of the n0 votes that
        select the class.
        """
        x = torch.from_numpy(np.array(images, dtype=np.float32)).to(self.device)  # a request's bytes are read-only
        answers: list[Answer] = []
        with self.computing():
            for part in x.split(GROUP if self.is_recorded else max(len(x), 1)):
                found = self.decided(part)
                answers += [self.told(found, i) for i in range(len(part))]
        return answers

    @property
    def is_recorded(self) -> bool:
        return isinstance(self.voter, QuickVoter) and self.voter.copy.recorded

    def decided(self, x: Tensor) -> Decision:
        if self.is_recorded and len(x) < GROUP:  # a recording is of so many images
            x = torch.cat([x, x[-1:].expand(GROUP - len(x), -1, -1, -1)])
        draws = None
        if self.seed is not None:
            draws = Draws(self.seed, torch.arange(self.answered, self.answered + len(x), device=self.device))
            self.answered += len(x)  # so that no two images share their noise
        return decide(self.voter, x, radii=self.radii, draws=draws, **self.options)

    def told(self, found: Decision, i: int) -> Answer:
        holds = dict(zip(self.radii, found.holds[i].tolist(), strict=True))
        certificate = Certificate(holds, int(found.votes[i]), self.options["sigma"], self.options["alpha"])
        return Answer(int(found.label[i]), found.shares[i].cpu().numpy(), "votes", certificate)

    def computing(self) -> Any:
        """The modes that votes are made in; threads are the calling thread's own."""
        if self.device.type == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return strict_float32()


def voting_network(package: Package, name: str, image: tuple[int, int, int], classes: int) -> nn.Module:
    """The network that votes, on the CPU; the program as a model where there is none, or another one is asked for."""
    channels, *size = image
    facts: dict[str, Any] = {"in_channels": channels, "num_classes": classes, "image_size": (size[0], size[1])}
    if package.has_gradients and name == ONNX:
        return network_of(package, facts, None)
    return onnx_model(package.read(name), name, **facts)


def voter_of(network: nn.Module, sample: Tensor, sigma: float) -> Replica | QuickVoter:
    """The network in strict float32, and its copy in half precision where it has one that agrees on noisy images."""
    with torch.no_grad(), evaluating(network):
        if not suits_half(network, sample.device):
            return exact_replica(network, sample)
        replicas = make_replicas(network, sample)
        return make_voter(replicas.exact, replicas.search, sample, sigma)
