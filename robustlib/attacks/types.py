"""Attack records: an attack's function, what its parameters say of it, and what a person says of it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial
from typing import Any, Self, get_args

from torch import Tensor

from robustlib.arguments import norms_of
from robustlib.inference.throughput import Work

AttackFunction = Callable[..., Tensor]  # (model, x, y, *, draws, ...) -> x_adv
Params = Mapping[str, Any]

# Parameters that those who run an attack fill in: nobody sets them.
FILLED_IN = frozenset({"draws", "classes", "start", "spent"})


@dataclass(frozen=True)
class Stage:
    """A function (model, x, y, *, ...) -> x_adv, and what its parameters say of it. It is called as the function is.

    This is the one place that looks at an attack's signature: a list of its parameters by hand could be wrong.
    """

    run: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.run(*args, **options)

    def given(self, *args: Any, **options: Any) -> Self:
        """The same with some of its arguments given."""
        return replace(self, run=partial(self.run, *args, **options))

    @cached_property
    def params(self) -> Mapping[str, inspect.Parameter]:
        """Its parameters by name, with their types and defaults; what is given is a default."""
        return inspect.signature(self.run).parameters

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """What is given by name alone."""
        return {name: p for name, p in self.params.items() if p.kind is p.KEYWORD_ONLY}

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """What whoever chooses the attack may set."""
        return {name: p for name, p in self.options.items() if name not in FILLED_IN}

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: p.default for name, p in self.params.items() if p.default is not p.empty}

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this library's functions, which do nothing but return images."""
        run = self.run.func if isinstance(self.run, partial) else self.run
        return getattr(run, "__module__", "").startswith(f"{__name__.partition('.')[0]}.")

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that it takes; none if it has no radius."""
        return norms_of(self.params["norm"]) if "norm" in self.params else ()

    @property
    def takes_eps(self) -> bool:
        return "eps" in self.params

    @property
    def eps_per_example(self) -> bool:
        """Whether eps may be a tensor, with each example's own radius."""
        return self.takes_eps and Tensor in get_args(self.params["eps"].annotation)

    @property
    def takes_start(self) -> bool:
        return "start" in self.params

    @property
    def counts_queries(self) -> bool:
        """Whether it fills `spent` in with the queries of each image."""
        return "spent" in self.params

    @property
    def lacks_surrogate(self) -> bool:
        """Whether it makes its images on a surrogate, and has none yet."""
        return "surrogate" in self.params and self.params["surrogate"].default is None


@dataclass(frozen=True)
class Attack(Stage):
    """What is known of an attack that studies name.

    cost: passes of an example that stands to the end, by the parameters.
    surrogate_cost: the same on its surrogate; None if it needs none.
    first_step: queries without which it does not come to a step, by the parameters; None if any number will do.
    one_search: it gets no weaker as its radius grows, and several radii may be one search.
    one_run: it is one run of steps that all do the same, and returns what they found; a start may be given.
    restarts: a second run may find more.  deterministic: it never draws a number.
    """

    cost: Callable[[Params], Work]
    _: KW_ONLY
    surrogate_cost: Callable[[Params], Work] | None = None
    first_step: Callable[[Params], int] | None = None
    one_search: bool = False
    one_run: bool = False
    restarts: bool = True
    deterministic: bool = False

    @property
    def uses_gradient(self) -> bool:
        """Whether it asks the model for gradients."""
        return self.cost(self.defaults).gradients > 0


@dataclass(frozen=True)
class Ensemble(Stage):
    """What is known of an ensemble: a function of a budget that gives a list of attacks. Fields: see `Attack`."""

    _: KW_ONLY
    one_search: bool = False
    restarts: bool = True


def as_stage(attack: AttackFunction) -> Stage:
    """An attack of ours, with or without arguments given by `functools.partial`, or any function like one."""
    if isinstance(attack, Stage):
        return attack
    if isinstance(attack, partial) and isinstance(attack.func, Stage):
        return attack.func.given(*attack.args, **attack.keywords)
    return Stage(attack)
