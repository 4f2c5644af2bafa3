"""Jobs as plain frozen data, the same in the study, the store and the worker; a job's key is a hash of its content."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from robustlib import KERNEL_VERSION
from robustlib.addresses import is_address, public
from robustlib.arguments import COUNT, NOT_NEGATIVE, Norm
from robustlib.datasets.source import AS_IT_IS, TEST, Reading
from robustlib.settings import AUTOATTACK, EXPLAIN, ONE_SEARCH, TRANSFER, TrainSettings
from robustq.jobs.text.attack_words import explanation_settings, surrogate_words
from robustq.jobs.text.canonical_json import canonical, without_places
from robustq.jobs.text.number_fields import Number, in_range

Count = int | Literal["all"]
Split = Literal["train", "test", "validation"]
Choose = Literal["first", "stratified"]


# Fields of an attack that tell jobs from those that were computed otherwise once.
MARKS = ("whole_steps", "spread_pool", "surrogate_gradients", "split_sums")


class Spec(BaseModel):
    """Frozen data that knows its key."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    not_content: ClassVar[frozenset[str]] = frozenset()  # fields on which no number depends

    def key(self, kernel: str | None = None) -> str:
        """SHA-256 of the canonical JSON and the kernels' version: equal work has equal keys, whoever asks for it.

        kernel: the version; today's where it is None.
        """
        spec = self.model_dump(mode="json", exclude=set(self.not_content))
        content = {"kernel": kernel or KERNEL_VERSION, "spec": without_places(spec)}
        return hashlib.sha256(canonical(content).encode()).hexdigest()


class DataRef(Spec):
    """A data set: `place` is its name for robustlib.datasets.load.load, with an absolute path; sha256 its content.

    split: that is evaluated.  reading: see there.
    """

    place: str
    sha256: str
    split: Split = TEST
    reading: Reading = AS_IT_IS

    def __hash__(self) -> int:
        return hash((self.place, self.sha256, self.split, self.reading))

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """As data sets were stored before they could be read in other ways: keys stay what they were."""
        usual = {"split": TEST, "reading": asdict(AS_IT_IS)}
        return {name: value for name, value in dump(self).items() if usual.get(name) != value}


class FileRef(Spec):
    """A file of weights by its absolute path and content. entry: which of several sets in it, where that was said."""

    place: str
    sha256: str
    entry: str | None = None

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """As files were stored before sets in them were chosen, where none is: keys stay what they were."""
        return {name: value for name, value in dump(self).items() if name != "entry" or value is not None}


class CodeRef(Spec):
    """A user's model: `place` is FILE.py or package.module, factory the function in it. Of a FILE.onnx and of a package
    the place is all, and factory is empty.

    sha256: of its source, and for a FILE.py of what that imports from beside it (see robustlib.hashing); of an ONNX
    file its bytes', of a package what robustlib.packages.manifest.package_hash says.
    """

    place: str
    factory: str
    sha256: str

    @property
    def reference(self) -> str:
        return f"{self.place}:{self.factory}" if self.factory else self.place

    @property
    def is_package(self) -> bool:
        return not self.factory and not self.is_onnx

    @property
    def is_onnx(self) -> bool:
        return not self.factory and self.place.endswith(".onnx")


class Statistics(Spec):
    """Mean and standard deviation by channel of the first layer."""

    mean: tuple[Number, ...]
    std: tuple[Number, ...]


class DefenceSpec(Spec):
    """A defence around a model by name, with every parameter of its function spelt out."""

    name: str
    params: dict[str, Any] = {}

    @property
    def words(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in sorted(self.params.items()))})"


class ModelSpec(Spec):
    """A network before training: by name or by the user's code, perhaps with weights from a file.

    first_layer: that `normalize` is put in front of the user's code. A network by name always has it there; for code it
    was stored and not used once, so that results from then must not stand for those with it.
    """

    arch: str | None = None
    code: CodeRef | None = None
    weights: FileRef | None = None
    normalize: Literal["dataset"] | Statistics | None = None
    first_layer: bool = False
    dropout_at_inference: Annotated[float, in_range()] | None = None
    options: dict[str, Any] = {}
    defence: tuple[DefenceSpec, ...] = ()  # put around the trained network, the first next to it

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """As models were stored before there were defences or first layers of code, where there are none: keys stay
        what they were.
        """
        return {name: value for name, value in dump(self).items() if name not in ("defence", "first_layer") or value}

    @property
    def reference(self) -> str | None:
        """The user's code as FILE.py:factory or package.module:factory; an ONNX file or a package as its place; None
        for a network by name.
        """
        return None if self.code is None else self.code.reference

    @property
    def entry(self) -> str | None:
        """Which set in the file of weights; None where none was chosen, or there is no file."""
        return None if self.weights is None else self.weights.entry

    @property
    def file_hashes(self) -> list[str | None]:
        """Of the file of weights and of the user's code; None for one that there is not."""
        return [None if file is None else file.sha256 for file in (self.weights, self.code)]

    @property
    def shown_arch(self) -> str:
        """What rows call the network: its name, FILE.py:factory of the user's code, or the public end of an address."""
        if self.code is None:
            return self.arch or ""
        if is_address(self.code.reference):
            place, _, end = public(self.code.reference).rpartition(":")
            return f"{Path(place).name}:{end}"
        name = Path(self.code.place).name
        return f"{name}:{self.code.factory}" if self.code.factory else name


class SurrogateSpec(Spec):
    """Another model, on which images are made. train: key of the training job that makes its weights, if one does;
    settings: of that training.
    """

    model: ModelSpec
    settings: TrainSettings | None = None
    train: str | None = None

    @property
    def words(self) -> str:
        """What it is, in one line; whatever the seed."""
        return surrogate_words(self.model_dump(mode="json"))


class AttackSpec(Spec):
    """An attack by name, with every parameter of its function spelt out, so that the row says what ran.

    curve: radii, rising, that are searched as one; `eps` is one of them.  surrogate: what `transfer` makes its images
    on; a network that learns the model's answers where it is None.  whole_steps: that a search in L1 whose model is
    asked on the way has the steps of the whole. Once those of its parts were coarser: results from then must not stand
    for these.  spread_pool: that a surrogate learns from images from all over its split, whose first ones are of few of
    its classes. Once it was these.  surrogate_gradients: of an audit, that what stands in for parts without a gradient
    has one. Once it had none, and such parts were not gone round.  split_sums: that an explanation's sums of gradients
    are taken behind a model's first layers, which has other last bits than sums of whole passes, as once they were.
    """

    name: str
    norm: Norm | None = None
    eps: float | None = None
    restarts: Annotated[int, in_range()] = 1
    curve: tuple[float, ...] = ()
    params: dict[str, Any] = {}
    surrogate: SurrogateSpec | None = None
    whole_steps: bool = False
    spread_pool: bool = False
    surrogate_gradients: bool = False
    split_sums: bool = False

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """As attacks were stored before there were surrogates, where there is none: keys stay what they were."""
        later = ("surrogate", *MARKS)
        return {name: value for name, value in dump(self).items() if name not in later or value}

    @property
    def recipe(self) -> str:
        """The attack in one line: what the row's number rests on."""
        if self.name == EXPLAIN:
            method, against, *others = explanation_settings(self.params).values()
            return f"{method} under {against}; {', '.join(others)}"
        params = ", ".join(f"{name}={value}" for name, value in sorted(self.params.items()) if value is not None)
        text = AUTOATTACK.format(**self.params) if self.name == "autoattack" else f"{self.name}({params})"
        text += f" x{self.restarts}" if self.restarts > 1 else ""
        if self.name == TRANSFER:
            source = None if self.surrogate is None else self.surrogate.model_dump(mode="json")
            text += f" from {surrogate_words(source)}"
        return text + (f", {len(self.curve)} {ONE_SEARCH}" if self.curve else "")


class TrainSpec(Spec):
    """Train one model with one seed."""

    kind: Literal["train"] = "train"
    model: ModelSpec
    data: DataRef
    settings: TrainSettings
    seed: int = 0


class EvalSpec(Spec):
    """Evaluate one model under one attack.

    train: key of the training job that makes the weights, if one does.  images: how many attacked images to keep.
    draws, eot_draws: see robustlib.evaluation.batches; used where the model turns out to be randomised.
    choose: which examples, the split's first or as many of each class as its share of the split, the first of each.
    batch_size: how many examples are worked on together, at most.  shards: how many parts to split it into, as the
    driver sees fit where it is None. No number depends on either.
    """

    not_content: ClassVar[frozenset[str]] = frozenset({"batch_size", "shards"})

    kind: Literal["eval", "shard"] = "eval"
    model: ModelSpec
    train: str | None = None
    data: DataRef
    attack: AttackSpec
    examples: Count = 1000
    choose: Choose = "first"
    seed: int = 0
    batch_size: Annotated[int, in_range()] | None = None
    draws: Annotated[int, in_range()] = 100
    eot_draws: Annotated[int, in_range()] = 20
    images: Annotated[int, in_range(NOT_NEGATIVE)] = 0
    shards: Annotated[int, in_range(COUNT)] | None = None

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """As evaluations were stored before examples could be chosen, where they are the first: keys stay."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("choose", "first")}


class ShardSpec(EvalSpec):
    """A part of an evaluation: those of its examples with places from `first` up to `last`, without that."""

    kind: Literal["eval", "shard"] = "shard"
    first: int = Field(ge=0)
    last: int


class SubsetSpec(EvalSpec):
    """Those examples of an evaluation that have these places in the split: run where they are needed, never queued."""

    places: tuple[int, ...]


class ProbeSpec(Spec):
    """Hold a slot for some seconds and do nothing: what a queue is measured with, and a cluster tried."""

    kind: Literal["probe"] = "probe"
    number: int
    seconds: float = 0.0


class WorstSpec(Spec):
    """The worst case over finished evaluations of one model: an example stands only where it stood in all of them.

    evals: keys of the evaluations, of which those with a smaller radius count too: their images lie in the larger ball.
    """

    kind: Literal["worst"] = "worst"
    evals: tuple[str, ...]
    norm: Norm
    eps: float


def worst_recipe(attacks: Sequence[AttackSpec]) -> str:
    """What the number of a worst case over these attacks rests on, in one line. By it worst cases of the same attacks
    are told from others.
    """
    parts = sorted(canonical([attack.norm, attack.eps, attack.recipe]) for attack in attacks)
    return f"worst of {len(attacks)} ({hashlib.sha256(canonical(parts).encode()).hexdigest()[:8]})"


AnySpec = TrainSpec | EvalSpec | WorstSpec | ProbeSpec
KINDS: dict[str, type[TrainSpec] | type[EvalSpec] | type[WorstSpec] | type[ProbeSpec]] = {
    "train": TrainSpec,
    "eval": EvalSpec,
    "shard": ShardSpec,
    "worst": WorstSpec,
    "probe": ProbeSpec,
}


def parse(data: dict[str, Any]) -> AnySpec:
    """The spec that was stored as this JSON."""
    return KINDS[data["kind"]].model_validate(data)
