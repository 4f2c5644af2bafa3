"""One self-contained HTML file on a sweep: tables and pictures, no network needed to read it."""

import base64
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import safetensors.numpy
from sqlalchemy import Connection

from jobs import artifacts, examples, figures, show
from jobs.engine import Store
from jobs.errors import SpecError
from jobs.query import artifact_of, data_ref, examples_of, find_sweep, results, sweep_spec, trainings
from robustlib import data
from robustlib.metrics import confusion_matrix

Row = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture of the report: file name, heading, what it shows in words, PNG bytes."""

    name: str
    title: str
    alt: str
    png: bytes

    @property
    def embedded(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def write_report(store: Store, name: str, out: Path, figures_folder: Path | None) -> list[Path]:
    """Write the report of the latest sweep of this name, and its pictures as files where a folder is given."""
    with store.begin() as db:
        sweep_id = find_sweep(db, name)
        assert sweep_id is not None  # a name that does not exist has raised
        rows = results(db, sweep_id)
        if not rows:
            raise SpecError(f"sweep {name!r} has no results yet: robustq drive --sweep {name} runs it")
        dataset = data.load(data_ref(db, sweep_id), "test")
        groups = {
            "curves": list(curves(rows)),
            "histories": list(training_pictures(db, sweep_id)),
            "confusions": list(confusions(db, rows, dataset)),
            "grids": list(grids(db, store, rows, dataset)),
        }
        page = render(rows, groups, sweep_spec(db, sweep_id), name)
    written = [out]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    if figures_folder is not None:
        figures_folder.mkdir(parents=True, exist_ok=True)
        for picture in [picture for group in groups.values() for picture in group]:
            path = figures_folder / f"{picture.name}.png"
            path.write_bytes(picture.png)
            written.append(path)
    return written


def render(rows: list[Row], groups: dict[str, list[Picture]], spec: Row, name: str) -> str:
    """The page from its template."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((files("jobs") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        dataset=rows[0]["dataset"],
        made=time.strftime("%Y-%m-%d %H:%M", time.localtime(max(row["recorded_at"] for row in rows))),
        n=max(row["n"] for row in rows),
        summary=show.summary_rows(rows),
        by_attack=by_attack(rows),
        distances=distances(rows),
        rows=show.result_rows(rows),
        devices=sorted({row["device"] for row in rows}),
        versions=json.dumps(rows[-1]["versions"], sort_keys=True),
        robustq=version("robustq"),
        spec=json.dumps(spec, indent=2),
        **groups,
    )


def slug(*parts: Any) -> str:
    return "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in str(part)) for part in parts)


def curves(rows: Sequence[Row]) -> Iterator[Picture]:
    """Accuracy by radius for every attack that was run at several."""
    for attack, norm in dict.fromkeys((row["attack"], row["norm"]) for row in rows if row["eps"] is not None):
        mine = [row for row in rows if (row["attack"], row["norm"]) == (attack, norm) and row["eps"] is not None]
        if len({row["eps"] for row in mine}) > 1:
            title = f"{attack}, {norm}"
            alt = f"Accuracy of each model against the radius of {attack} in {norm}; the same numbers are in the table"
            yield Picture(slug("eps-curve", attack, norm), title, alt, figures.eps_curve(title, mine))


def training_pictures(db: Connection, sweep_id: int) -> Iterator[Picture]:
    found = trainings(db, sweep_id)
    if found:
        alt = "Validation accuracy of each training by epoch, clean on the left, under PGD on the right"
        yield Picture("training", "Training, epoch by epoch", alt, figures.histories(found))


def by_attack(rows: Sequence[Row]) -> list[Row]:
    """Accuracy in percent, a line a model and radius, a column an attack: shows which attack a number rests on."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row["eps"]))
    lines: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["eps"]:
            place = (row["model"], row["norm"], row["eps"])
            head = {"model": row["model"], "norm": row["norm"], "eps": show.eps_text(row["eps"])}
            lines.setdefault(place, head | dict.fromkeys(attacks, ""))
            same = [r for r in rows if (r["model"], r["norm"], r["eps"], r["attack"]) == (*place, row["attack"])]
            lines[place][row["attack"]] = show.percent(show.mean(same, "robust_accuracy"))
    return list(lines.values())


def distances(rows: Sequence[Row]) -> list[Row]:
    """Median distances that minimum-norm attacks found."""
    return [
        {
            "model": row["model"],
            "attack": row["attack"],
            "norm": row["norm"],
            "seed": row["seed"],
            "median distance": show.text(row["distance_median"]),
        }
        for row in rows
        if row["eps"] is None and row["norm"] is not None
    ]


def telling(rows: Sequence[Row], attacks: Sequence[str]) -> Iterator[Row]:
    """For each model its row, of the first of these attacks that it has, at the middle one of the radii; first seed."""
    for model in dict.fromkeys(row["model"] for row in rows):
        for attack in attacks:
            mine = [row for row in rows if (row["model"], row["attack"]) == (model, attack) and row["eps"]]
            if mine:
                mine = sorted(
                    (row for row in mine if row["norm"] == mine[0]["norm"]), key=lambda row: (row["seed"], row["eps"])
                )
                first = [row for row in mine if row["seed"] == mine[0]["seed"]]
                yield first[(len(first) - 1) // 2]
                break


def attack_names(rows: Sequence[Row]) -> list[str]:
    """Attacks with a radius, the last of the study first: studies end with their strongest."""
    return list(dict.fromkeys(row["attack"] for row in reversed(rows) if row["eps"] and row["attack"] != "worst-case"))


def confusions(db: Connection, rows: Sequence[Row], dataset: data.Dataset) -> Iterator[Picture]:
    """Confusion matrices of each model, clean and at a middle radius."""
    for row in telling(rows, ["worst-case", *attack_names(rows)]):
        columns = examples.to_columns(examples_of(db, row["job_id"]))
        matrices = {
            label: confusion_matrix(columns["label"], columns[column], dataset.num_classes)
            for label, column in (("clean", "clean_prediction"), (condition(row), "adversarial_prediction"))
            if columns[column].max() < dataset.num_classes
        }
        title = f"{row['model']}: confusion matrices"
        alt = f"Confusion matrices of {row['model']}, clean and under {condition(row)}, on {row['n']} images"
        yield Picture(slug("confusion", row["model"]), title, alt, figures.confusion(title, matrices, dataset.names))


def condition(row: Row) -> str:
    return f"{row['attack']}, {row['norm']}, eps {show.eps_text(row['eps'])}"


def grids(db: Connection, store: Store, rows: Sequence[Row], dataset: data.Dataset) -> Iterator[Picture]:
    """The first images of each model, clean, attacked and their difference, where the study kept any."""
    for row in telling(rows, attack_names(rows)):
        sha256 = artifact_of(db, row["job_id"], "images")
        if sha256 is None:
            continue
        attacked = safetensors.numpy.load(artifacts.get(store.artifacts, sha256))["x_adv"][:10]
        clean = dataset.x[: len(attacked)].astype(np.float32) / 255
        columns = examples.to_columns(examples_of(db, row["job_id"]))
        captions = [
            (dataset.names[before], dataset.names[after] if after < dataset.num_classes else str(after))
            for before, after in zip(
                columns["clean_prediction"][: len(attacked)],
                columns["adversarial_prediction"][: len(attacked)],
                strict=True,
            )
        ]
        title = f"{row['model']} under {condition(row)}"
        alt = "Predictions, clean and attacked: " + "; ".join(f"{a} becomes {b}" for a, b in captions)
        yield Picture(slug("images", row["model"]), title, alt, figures.picture_grid(title, clean, attacked, captions))
