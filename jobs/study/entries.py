"""The entries of a study as checked data: a model, its defences, an attack; and the numbers that entries are."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from robustlib.arguments import COUNT, Norm
from robustlib.names import did_you_mean
from robustlib.normalisations import NORMALISATIONS, check_statistics
from robustq.jobs.specs import Statistics
from robustq.jobs.text.number_fields import Number, Radius, Whole, in_range
from robustq.jobs.text.number_parsing import MOST, NotNumber, whole, written_whole


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def counted(value: Any) -> Any:
    """A number of examples, or all."""
    found = written_whole(value) if isinstance(value, str) and value != "all" else whole(value)
    if isinstance(found, int) or found == "all":
        return found
    raise NotNumber("a whole number or all", value)


def sides(value: Any) -> Any:
    """The shorter side in pixels, or height and width."""
    many = isinstance(value, list | tuple)
    found = [whole(side) for side in (value if many else [value])]
    if len(found) != (2 if many else 1) or not all(isinstance(side, int) and 1 <= side < MOST for side in found):
        raise ValueError(f"expected pixels, as 256 or [224, 320], got {value!r}")
    return found if many else found[0]


Seed = Annotated[Whole, Field(ge=-MOST, lt=MOST)]
Count = Annotated[Whole, in_range(COUNT), Field(lt=MOST)]
Examples = Annotated[int | Literal["all"], BeforeValidator(counted)]  # of an evaluation: a training wants two
Size = Annotated[int | tuple[int, int], BeforeValidator(sides)]


class StudyDefence(Part):
    """One defence of a model; what is no field here is a parameter of its function."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class StudyModel(Part):
    """One entry of `models`."""

    arch: str | None = None
    file: str | None = None
    weights: str | None = None
    normalize: Literal["dataset", "cifar10", "cifar100", "imagenet"] | Statistics | None = None
    dropout_at_inference: Annotated[Number, in_range()] | None = None
    options: dict[str, Any] = {}
    train: dict[str, Any] | None = None
    defence: tuple[StudyDefence, ...] = ()

    @field_validator("defence", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("normalize", mode="before")
    @classmethod
    def statistics(cls, value: Any) -> Any:
        """One number stands for all channels. What cannot be a mean or a standard deviation is refused."""
        if value is not None and not isinstance(value, dict | Statistics) and value not in ("dataset", *NORMALISATIONS):
            names = ["dataset", *NORMALISATIONS]
            known = ", ".join(names)
            raise ValueError(
                f"expected {known} or {{mean: [...], std: [...]}}, got {value!r}{did_you_mean(value, names)}"
            )
        if not isinstance(value, dict):
            return value
        if value.keys() != {"mean", "std"}:
            raise ValueError(f"expected mean and std, got {', '.join(map(str, value)) or 'neither'}")
        lists = {name: part if isinstance(part, list | tuple) else [part] for name, part in value.items()}
        for name, part in lists.items():
            for number in part:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise ValueError(f"expected numbers of {name}, one a channel or one for all, got {number!r}")
        most = max(map(len, lists.values()))
        lists = {name: part * most if len(part) == 1 else part for name, part in lists.items()}
        check_statistics(lists["mean"], lists["std"])
        return lists

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """Without an empty `defence`: a study from before there was one is still the same study."""
        return {name: value for name, value in dump(self).items() if name != "defence" or value}

    @model_validator(mode="after")
    def one_source(self) -> "StudyModel":
        if (self.arch is None) == (self.file is None):
            raise ValueError("expected either arch (a name) or file (FILE.py:factory)")
        if self.arch is not None and self.weights is None and self.train is None:
            raise ValueError(f"{self.arch} has neither weights nor train: an untrained network says nothing")
        return self


class StudyAttack(Part):
    """One entry of `attacks`; what is no field here is a parameter of the attack's function."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    norm: Norm | None = None
    eps: tuple[Radius, ...] | None = None  # which of them there are depends on the attack's norm: see check_radius
    restarts: Count = 1
    surrogate: str | None = None  # one of the study's models

    @field_validator("eps", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, list | tuple) else [value]

    @field_validator("eps")
    @classmethod
    def some(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value == ():
            raise ValueError("expected a radius or a list of some, got an empty list")
        return value

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """Without a `surrogate` that is none: a study from before there was one is still the same study."""
        return {name: value for name, value in dump(self).items() if name != "surrogate" or value}

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})
