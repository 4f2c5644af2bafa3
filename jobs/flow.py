"""What the commands do, one function each: between the command line and the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs import queue, show
from jobs.engine import Store
from jobs.errors import JobsFailed, SpecError
from jobs.query import counts, failures, find_sweep, job_log, jobs_of, results, running, sweeps
from jobs.specs import number
from jobs.study import load_study


def submit_file(store: Store, path: Path, changes: dict[str, Any]) -> Any:
    """Submit the study in a file, with the command line's changes; a data set given there is relative to here."""
    from jobs.submit import submit

    given = {name: value for name, value in changes.items() if value is not None}
    if "examples" in given:
        given["examples"] = count(given["examples"])
    if "dataset" in given:
        kind, colon, place = str(given["dataset"]).partition(":")
        given["dataset"] = f"{kind}:{Path(place).absolute()}" if colon else kind
    study, origin = load_study(path, given)
    return submit(store, study, origin, path.parent)


def count(value: str) -> int | str:
    """A number of examples, or all."""
    if value == "all" or value.isdecimal():
        return value if value == "all" else int(value)
    raise SpecError(f"--examples: expected a number or all, got {value!r}")


def submit_attack(store: Store, options: dict[str, Any]) -> Any:
    """Submit the study of one model that `robustq attack` means."""
    params = parameters(options["params"])
    radii = [radius(text) for text in options["eps"]]
    attacks = []
    for name in options["attacks"]:
        entry: dict[str, Any] = {"name": name} | params
        entry |= {"norm": options["norm"]} if options["norm"] else {}
        entry |= {"eps": radii} if radii else {}
        attacks.append(entry)
    model = model_entry(options["model"], options["weights"])
    return submit_one_off(store, "attack", model, attacks, options)


def submit_training(store: Store, options: dict[str, Any]) -> Any:
    """Submit the study of one training that `robustq train` means."""
    train = {"objective": options["objective"], "epochs": options["epochs"]} | parameters(options["params"])
    model = model_entry(options["model"], None) | {"train": train}
    return submit_one_off(store, "train", model, [{"name": "clean"}], options | {"examples": "all"})


def submit_one_off(
    store: Store, name: str, model: dict[str, Any], attacks: list[dict[str, Any]], options: dict[str, Any]
) -> Any:
    from jobs.plan import one_off
    from jobs.submit import submit

    label = Path(options["model"]).name
    data = {
        "name": name,
        "dataset": options["dataset"],
        "models": {label: model},
        "attacks": attacks,
        "seeds": [options["seed"]],
        "examples": count(options["examples"]),
    }
    named = {"dataset": "--dataset", "eps": "--eps", "norm": "--norm", "weights": "--weights", "train": "--param"}
    named |= {"attacks": "--attack", "models": "MODEL"}
    study, origin = one_off(name, data, named)
    return submit(store, study, origin, Path())


def model_entry(model: str, weights: str | None) -> dict[str, Any]:
    """MODEL as a study's entry: what has a colon is the user's code, but for torchvision's."""
    entry = {"file": model} if ":" in model and not model.startswith("torchvision:") else {"arch": model}
    return entry | ({"weights": weights} if weights else {})


def radius(text: str) -> float:
    value = number(text)
    try:
        return float(value)
    except ValueError as error:
        raise SpecError(f"--eps: expected a number such as 8/255, got {text!r}") from error


def parameters(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE options, the values as YAML would read them."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"--param: expected NAME=VALUE, got {text!r}")
        try:
            found[name] = number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise SpecError(f"--param: expected NAME=VALUE, got {text!r}") from error
    return found


def sweep_id(store: Store, name: str | None) -> int | None:
    """The latest sweep of this name, None for no name."""
    with store.begin() as db:
        return find_sweep(db, name)


def results_text(store: Store, chosen: int | None, *, as_json: bool, summary: bool = False) -> str:
    """The results of a sweep or of all, as text or JSON."""
    with store.begin() as db:
        rows = results(db, chosen)
    if as_json:
        return show.json_text(rows)
    if not summary:
        return show.table(show.result_rows(rows))
    parts = []
    for name in dict.fromkeys(row["sweep"] for row in rows):
        mine = [row for row in rows if row["sweep"] == name]
        n = max(row["n"] for row in mine)
        parts.append(f"{name}: accuracy in % on {n} images, clean and under the worst of the attacks by radius")
        parts.append(show.table(show.summary_rows(mine)))
    return "\n".join(parts) or show.table([])


def counts_text(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in found.items() if n) or "no jobs"


def status_text(store: Store, name: str | None, *, as_json: bool) -> str:
    """Jobs by state, what runs, what failed."""
    with store.begin() as db:
        chosen = find_sweep(db, name)
        data = {
            "jobs": counts(db, chosen),
            "sweeps": sweeps(db),
            "running": running(db),
            "failed": failures(db, chosen),
        }
    if as_json:
        return show.json_text(data)
    parts = [counts_text(data["jobs"])]
    if name is None and data["sweeps"]:
        shown = ("sweep", *data["jobs"])
        parts.append(show.table(data["sweeps"], shown))
    if data["running"]:
        shown = ("id", "kind", "arch", "attack", "progress_done", "progress_total", "progress_note", "seconds")
        parts.append("running:\n" + show.table(data["running"], shown))
    if data["failed"]:
        parts.append("failed:\n" + show.table(data["failed"]))
    return "\n\n".join(parts)


def raise_failures(store: Store, chosen: int | None) -> None:
    """JobsFailed, with the first reason, where a job of the sweep failed."""
    with store.begin() as db:
        failed = counts(db, chosen)["failed"]
        first = failures(db, chosen, most=1)
    if failed:
        reason = f"{first[0]['error_class']}: {first[0]['error_message']}"
        raise JobsFailed(
            f"{failed} jobs failed, job {first[0]['id']} with {reason} "
            f"(robustq logs {first[0]['id']} shows all of it, robustq retry queues them again)"
        )


def chosen_jobs(db: Any, job_ids: Sequence[int], name: str | None) -> Any:
    if not job_ids and name is None:
        raise SpecError("expected numbers of jobs or --sweep NAME, got neither")
    for job_id in job_ids:
        job_log(db, job_id)  # raises for a number that does not exist
    return list(job_ids) if job_ids else jobs_of(find_sweep(db, name))


def cancel(store: Store, job_ids: Sequence[int], name: str | None) -> int:
    """Cancel jobs; returns how many were not finished."""
    with store.begin() as db:
        return queue.cancel(db, chosen_jobs(db, job_ids, name))


def retry(store: Store, job_ids: Sequence[int], name: str | None) -> int:
    """Queue failed and cancelled jobs again, with those that failed only for their sake; returns how many."""
    with store.begin() as db:
        return queue.retry(db, chosen_jobs(db, job_ids, name))


def log_text(store: Store, job_id: int, *, as_json: bool) -> str:
    with store.begin() as db:
        log = job_log(db, job_id)
    return show.json_text(log) if as_json else show.log_text(log)


def write_weights(store: Store, chosen: int, out: Path) -> None:
    """Copy the weights that the sweep's only training left to a file."""
    from jobs import artifacts
    from jobs.query import weights_of_sweep

    with store.begin() as db:
        sha256 = weights_of_sweep(db, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(artifacts.get(store.artifacts, sha256))
