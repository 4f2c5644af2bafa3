"""The columns of a bundle's rows beside the specs of their jobs: a key has nothing of them."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from robustlib.datasets.load import PATH_DATASETS
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.specs import EvalSpec, TrainSpec, WorstSpec, worst_recipe
from robustq.jobs.text.safe_text import brief
from robustq.jobs.verification.bundled_jobs import BundledJob


def columns_differ(one: BundledJob, by_key: Mapping[str, BundledJob]) -> Iterator[str]:
    """What a row shows of its job otherwise than the spec has it, a line each."""
    for name, value in columns_by_spec(one, by_key).items():
        if getattr(one, name) != value:
            yield f"{one.told}: its {name} is {brief(getattr(one, name))}, its spec has {brief(value)}"
    spec = one.parsed
    if isinstance(spec, TrainSpec | EvalSpec) and not is_shown(spec.data.place, one.dataset or ""):
        yield f"{one.told}: its data set is {brief(one.dataset)}, its spec has {brief(spec.data.place)}"


def columns_by_spec(one: BundledJob, by_key: Mapping[str, BundledJob]) -> dict[str, Any]:
    """The columns that follow from a spec, and from those of the jobs that it rests on."""
    match spec := one.parsed:
        case TrainSpec():
            about = dict.fromkeys(("attack", "norm", "eps", "recipe"))
            return about | {"seed": spec.seed, "arch": spec.model.shown_arch, "defence": spec.settings.objective}
        case EvalSpec(attack=attack):
            trained = by_key.get(spec.train or "")
            learnt = None if trained is None else trained.parsed
            words = [learnt.settings.objective] if isinstance(learnt, TrainSpec) else []
            return {
                "attack": attack.name,
                "norm": attack.norm,
                "eps": attack.eps,
                "recipe": attack.recipe,
                "seed": spec.seed,
                "arch": spec.model.shown_arch,
                "defence": " + ".join([*words, *(part.words for part in spec.model.defence)]) or None,
            }
        case WorstSpec():
            about = {"attack": WORST_CASE, "norm": spec.norm, "eps": spec.eps}
            evals = [by_key[key] for key in spec.evals if key in by_key]
            if len(evals) < len(spec.evals):
                return about  # which is told as what is missing
            specs = [part.parsed for part in evals]
            about |= {"recipe": worst_recipe([part.attack for part in specs if isinstance(part, EvalSpec)])}
            same = ("seed", "arch", "defence", "dataset", "model")
            return about | {name: getattr(evals[0], name) for name in same}
        case _:
            return {}


def is_shown(place: str, words: str) -> bool:
    """Whether words may be those of a data set: its name, or the file's at the end of a path, and how it is read."""
    kind, colon, path = place.partition(":")
    if not colon or kind not in PATH_DATASETS:
        return words == place or words.startswith(f"{place} (")
    name = PurePath(path).name
    # A study may say it by a folder's other names: what is not that of a file is not compared.
    shown = PurePath(words.partition(":")[2].partition(" (")[0]).name
    return words.startswith(f"{kind}:") and (shown in ("", "..", "~") or name in words)
