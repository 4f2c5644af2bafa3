"""Votes of a model over noisy copies of images: by the model itself, or by its quick copy wherever that is sure."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from robustlib.inference.copy_agreement import HALF_DRIFT
from robustlib.inference.oracle import as_oracle
from robustlib.inference.predict import classes_of
from robustlib.inference.recorded_call import RecordedCall, logits_in_kernels, record_call
from robustlib.inference.replica import Replica
from robustlib.losses import margin
from robustlib.memory import free
from robustlib.model_calls import Careful, ask
from robustlib.normal_streams import normal_at, normal_keys, normals
from robustlib.rng import Draws

PASS = 512 * 3 * 32 * 32  # values of the noisy images that pass at once on a CPU
SAMPLE_DRAWS = 2  # noisy copies of each image of a sample, on which a copy is compared with its model
LOOK = 8  # chunks after which the host asks which votes are in doubt: till then the device need not wait for it

Look = Callable[[Tensor, Tensor], None]


def vote(
    model: nn.Module, x: Tensor, sigma: float, n: int, draws: Draws, stream: str, look: Look | None = None
) -> Tensor:
    """Counts by class over n noisy copies of each image, shape (B, classes), int64.

    look: is shown the copies that pass at once, (copies * B, C, H, W), and their logits.
    Raises ValueError for a model that gives NaN: its first class would get the vote, and be certified.
    """
    counts = None
    keys = keys_of(draws, stream, n)
    for chunk in chunks(n, draws_at_once(model, x)):
        noise = normals(draws, tuple(x.shape[1:]), keys[:, chunk.start : chunk.stop]).flatten(0, 1)
        noisy = x.repeat(len(chunk), *[1] * (x.ndim - 1)) + sigma * noise
        logits = ask(model, noisy)
        chosen = classes_of(logits).reshape(len(chunk), -1).T  # (B, copies)
        if look is not None:
            look(noisy, logits)
        if counts is None:
            counts = chosen.new_zeros(len(x), logits.shape[1])
        counts.scatter_add_(1, chosen, torch.ones_like(chosen))
    assert counts is not None
    return counts


def keys_of(draws: Draws, stream: str, n: int) -> Tensor:
    """Keys of the noise of n copies, on the device, shape (2, n): see `normal_keys`."""
    return normal_keys(draws.seed, [f"{stream}/{draw}" for draw in range(n)]).to(draws.index.device)


def draws_at_once(model: nn.Module, x: Tensor) -> int:
    """How many noisy copies of all images pass at once: as many as the largest batch of a GPU takes."""
    if x.is_cuda and (batch := as_oracle(model).batch):
        return max(1, batch // max(len(x), 1))
    return max(1, PASS // max(x.numel(), 1))


def chunks(n: int, size: int) -> Iterator[range]:
    for first in range(0, n, size):
        yield range(first, min(first + size, n))


class QuickVoter(Careful, nn.Module):
    """A model and its copy in half precision, which votes where it is sure to vote as the model does.

    exact: the model, in strict float32.  copy: gives logits that are not finite where its range ends.
    drift: a vote by no larger a margin is the model's own: see `make_voter`.
    words: what came of recording the votes, for the mode.
    """

    def __init__(self, exact: Replica, copy: Replica, drift: float):
        super().__init__()
        self.pair = (exact, copy.but(spare=None))  # in a tuple, so that they are no parts of this module
        self.drift = drift
        self.words = ""
        self.latest: Chunk | None = None

    @property
    def exact(self) -> Replica:
        return self.pair[0]

    @property
    def copy(self) -> Replica:
        return self.pair[1]

    @property
    def mode(self) -> str:
        """In which form votes are made, in words."""
        return f"votes in {self.copy.mode}{self.words}; selection and votes in doubt in {self.exact.mode}"

    def forward(self, x: Tensor) -> Tensor:
        return self.exact(x)

    def select(self, x: Tensor, sigma: float, n: int, draws: Draws, stream: str) -> tuple[Tensor, Tensor]:
        """The class that most of n votes of the model are for, and for which images the copy may vote, shape (B,)."""
        counts, trusted = self.selection(x, sigma, n, draws, stream)
        return counts.argmax(1), trusted

    def selection(self, x: Tensor, sigma: float, n: int, draws: Draws, stream: str) -> tuple[Tensor, Tensor]:
        """n votes of the model by class, (B, classes), and for which images the copy may vote, shape (B,).

        Those are told by the same noisy copies: none of its logits there is off by more than half of the drift, and it
        is in doubt about less than half of them.
        """
        off, doubts = torch.zeros(len(x), device=x.device), torch.zeros_like(draws.index)

        def look(noisy: Tensor, logits: Tensor) -> None:
            found = self.copy(noisy)
            torch.maximum(off, (found - logits).abs().amax(1).reshape(-1, len(x)).amax(0), out=off)  # NaN stays
            if found.shape[1] == 1:
                return  # one class has all votes
            first, second = found.topk(2, dim=1).values.T.chunk(2)
            doubts.add_((~(first - second > self.drift)).reshape(-1, len(x)).sum(0))

        counts = vote(self.exact, x, sigma, n, draws, stream, look)
        return counts, (2 * off <= self.drift) & (2 * doubts < n)

    def hits(
        self, x: Tensor, sigma: float, n: int, draws: Draws, stream: str, guess: Tensor, trusted: Tensor
    ) -> Tensor:
        """How many of n votes are for the guessed class, shape (B,), int64.

        trusted: for which images the copy may vote. All votes on the others are the model's.
        """
        found = torch.zeros_like(guess)
        for row, quick in ((~trusted).nonzero().squeeze(1), False), (trusted.nonzero().squeeze(1), True):
            if len(row) and not quick:
                votes = vote(self.exact, x[row], sigma, n, draws[row], stream)
                found[row] = votes.gather(1, guess[row, None]).squeeze(1)
            elif len(row) and self.copy.recorded:  # for as many images in each group, so that one recording does
                found += self.quick_hits(x, sigma, n, draws, stream, guess, trusted)
            elif len(row):
                found[row] = self.quick_hits(x[row], sigma, n, draws[row], stream, guess[row], trusted[row])
        return found

    def quick_hits(
        self, x: Tensor, sigma: float, n: int, draws: Draws, stream: str, guess: Tensor, trusted: Tensor
    ) -> Tensor:
        """The same by the copy and, where that is in doubt, the model; 0 for images that are not trusted."""
        chunk = self.chunk_for(x, sigma, draws)
        chunk.begin(x, draws.index, guess, trusted)
        keys, doubts, flags = keys_of(draws, stream, n), Doubts(self.exact, x, sigma, draws.index, guess), []
        for number, part in enumerate(chunks(n, chunk.keys.shape[1]), 1):
            own = keys[:, part.start : part.stop]
            flags.append((own, chunk.vote(own)))
            if number % LOOK == 0 or part.stop == n:
                for those, doubtful in flags:
                    doubts.add(doubtful, those)
                flags.clear()
        return chunk.hits + doubts.ask()

    def chunk_for(self, x: Tensor, sigma: float, draws: Draws) -> "Chunk":
        """A chunk for images like these, recorded where the copy's passes are."""
        kind = (x.shape, x.dtype, x.device, sigma, self.copy.sizes)
        if self.latest is None or self.latest.kind != kind:
            self.latest = None  # whose memory a new recording may need
            at_once = self.copy.batch // len(x) if self.copy.recorded else draws_at_once(self.copy, x)
            self.latest = Chunk(kind, x, sigma, draws, self.copy, self.drift, max(1, at_once))
            if self.copy.recorded or x.is_cuda:
                self.words = ", recorded" if self.latest.record() else ", not recorded"
        return self.latest


class Chunk:
    """Votes on D noisy copies of each of B images, on tensors that stay where they are, so that one CUDA graph does it.

    kind: of which images and copy.  keys: of the noise, (2, D).  live: which of the D copies count, (D, 1).
    hits: sure votes for the guessed class so far, (B,).  doubtful: votes that the model is to be asked for, (D, B).
    """

    def __init__(
        self,
        kind: tuple[object, ...],
        x: Tensor,
        sigma: float,
        draws: Draws,
        copy: Replica,
        drift: float,
        at_once: int,
    ):
        self.kind, self.sigma, self.copy, self.drift = kind, sigma, copy, drift
        self.x, self.draws = x.clone(memory_format=torch.contiguous_format), Draws(0, draws.index.clone())
        self.guess, self.hits = torch.zeros_like(draws.index), torch.zeros_like(draws.index)
        self.trusted = self.hits == 0
        self.keys = self.hits.new_zeros(2, at_once)
        self.live = self.keys[:1].T == 0
        self.doubtful = self.live & self.trusted
        self.recorded: RecordedCall | None = None

    def begin(self, x: Tensor, index: Tensor, guess: Tensor, trusted: Tensor) -> None:
        for mine, given in (self.x, x), (self.draws.index, index), (self.guess, guess), (self.trusted, trusted):
            mine.copy_(given)
        self.hits.zero_()

    def vote(self, keys: Tensor) -> Tensor:
        """Count the votes by the noise of these keys, (2, d), d at most D; returns which are in doubt, (d, B)."""
        n = keys.shape[1]
        self.keys[:, :n].copy_(keys)
        if self.recorded is None:
            self.count(self.copy, n)
        else:
            self.live.copy_(torch.arange(len(self.live), device=keys.device)[:, None] < n)
            self.recorded()
            self.copy.count.forwards += n * len(self.x)
        return self.doubtful[:n].clone()

    def count(self, logits_of: Callable[[Tensor], Tensor], n: int) -> None:
        """The votes on the first n of the D noisy copies."""
        noise = normals(self.draws, tuple(self.x.shape[1:]), self.keys[:, :n])
        logits = logits_of((self.x + self.sigma * noise).flatten(0, 1))
        against = margin(logits, self.guess.repeat(n)).reshape(n, -1)
        # NaN and infinity are never a vote: the first class would get it, and be certified.
        sure = logits.isfinite().all(1).reshape(n, -1) & (against.abs() > self.drift)
        counted = self.live[:n] & self.trusted
        self.hits.add_((counted & sure & (against < 0)).sum(0))
        self.doubtful[:n].copy_(counted & ~sure)

    def record(self) -> bool:
        """Play the votes from a CUDA graph from now on, if they can be recorded."""
        if not self.copy.recorded or self.doubtful.numel() > self.copy.batch:
            return False
        with suppress(Exception):  # a user's model may do anything that a recording does not allow
            self.recorded = record_call(self.count_all, self.hits, self.doubtful)
            return True
        free()  # where the error no longer holds what may have been too much
        return False

    def count_all(self) -> None:
        self.count(lambda x: logits_in_kernels(self.copy, x), len(self.live))


class Doubts:
    """Votes that the model itself is asked for, as many at once as go well into a pass.

    x, index, guess: images, their places in the data set, and the classes that hits are counted for, shape (B, ...).
    """

    def __init__(self, model: Replica, x: Tensor, sigma: float, index: Tensor, guess: Tensor):
        self.model, self.x, self.sigma, self.index, self.guess = model, x, sigma, index, guess
        self.hits = torch.zeros_like(guess)
        self.rows: list[Tensor] = []
        self.keys: list[Tensor] = []

    def add(self, doubtful: Tensor, keys: Tensor) -> None:
        """doubtful: of D noisy copies of B images, (D, B).  keys: of their noise, (2, D)."""
        draw, row = doubtful.nonzero().T
        self.rows.append(row)
        self.keys.append(keys[:, draw])
        if sum(map(len, self.rows)) >= self.model.batch:
            self.ask()

    def ask(self) -> Tensor:
        """The hits among all that were added, shape (B,), int64."""
        rows, keys = torch.cat(self.rows), torch.cat(self.keys, 1)
        self.rows, self.keys = [rows[:0]], [keys[:, :0]]
        for some, own in zip(rows.split(self.model.batch), keys.split(self.model.batch, 1), strict=True):
            if len(some):
                noise = normal_at(self.index[some], own, tuple(self.x.shape[1:]))
                chosen = classes_of(ask(self.model, self.x[some] + self.sigma * noise))
                self.hits.index_add_(0, some, (chosen == self.guess[some]).long())
        return self.hits


def make_voter(exact: Replica, copy: Replica, sample: Tensor, sigma: float) -> Replica | QuickVoter:
    """The model with its copy to vote beside it; the model alone where the copy is no quicker, or not like it on noise.

    sample: some images, on the device, in eval mode and strict float32. The copy is compared with the model on noisy
    copies of them, with this sigma; its votes count where the margin is above four times the largest difference of a
    logit there, and on the images themselves (`Replica.drift`). A margin is off by at most twice that of a logit.
    """
    if copy.precision == torch.float32:
        return exact
    draws = Draws(0, torch.arange(len(sample), device=sample.device))
    noise = normals(draws, tuple(sample.shape[1:]), keys_of(draws, "certify/drift", SAMPLE_DRAWS))
    noisy = (sample + sigma * noise).flatten(0, 1)
    expected = exact(noisy)
    off = (copy.but(spare=None)(noisy) - expected).abs().max().item()
    if not off <= HALF_DRIFT * expected.std().item():  # NaN too
        return exact.but(mode=f"{exact.form} (given up: {copy.form}: other logits on noisy images)")
    return QuickVoter(exact, copy, max(copy.drift, 4 * off))
