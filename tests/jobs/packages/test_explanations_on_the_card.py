"""The explanations of a card: those that the store has of the model, in card.json, on its page, and nowhere else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustlib.packages.manifest import open_package
from robustq.jobs.packages.card import Card, card_of
from robustq.jobs.packages.chosen_model import Chosen, model_by_job
from robustq.jobs.packages.explanations import explanations_text, read_explanations
from robustq.jobs.packages.make import Made
from robustq.jobs.packages.verify import verify
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.specs import DataRef, ModelSpec
from robustq.jobs.store.connection import Store
from tests.helpers.fake_explanations import add_explanation, made_up_measures
from tests.helpers.fake_results import add_sweep
from tests.helpers.packaged import TRAINED, altered

MEANS = {"noise": 0.7, "pgd": 0.5, "explanation-attack": 0.3}


def test_the_cards_explanations_are_the_stores(made: Made, trained: Store):
    with trained.begin() as db:
        rows = {row["against"]: row for row in explanation_rows(db)}
    (told,) = made.card.explanations
    first: Any = rows["clean"]
    for name in ("method", "target", "norm", "eps", "recipe", "seed", "n", "verdict", "key", "device", "versions"):
        assert getattr(told, name) == first[name], name
    assert told.job == first["job_id"] and [done.against for done in told.disturbed] == ["noise", "pgd"]
    for done in told.disturbed:
        row: Any = rows[done.against]
        assert done.kept == row["kept"]
        for name in ("top_intersection", "spearman", "ssim"):
            found = getattr(done, name)
            assert (found.mean, found.low, found.high) == tuple(row[f"{name}{end}"] for end in ("", "_low", "_high"))


def test_the_page_has_noise_beside_the_attack(made: Made, place: Path):
    page = (place / "card.md").read_text()
    section = page.partition("## Explanations under attack\n")[2].partition("\n## ")[0]
    assert explanations_text(made.card.explanations) == f"## Explanations under attack\n{section}".rstrip()
    lines = [line for line in section.splitlines() if line.startswith("| ") and "saliency" in line]
    assert len(lines) == 2 and "| noise |" in lines[0] and "| pgd |" in lines[1]
    (told,) = made.card.explanations
    found = told.disturbed[0].top_intersection
    assert found is not None and f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" in lines[0]
    assert verify(place, made.digest).failed == []


def test_what_failed_its_checks_is_not_trusted_on_the_page(made_up: Store):
    with made_up.begin() as db:
        chosen = Chosen("m", ModelSpec(arch="lenet5"), DataRef(place="digits", sha256="0" * 64), 0, "digits")
        values: dict[str, Any] = {"subject": chosen.subject, "key": "1" * 64}
        add_explanation(db, add_sweep(db, "s"), "m", made_up_measures(0, MEANS, alike=0.95), **values)
        add_explanation(db, 1, "other", made_up_measures(0, MEANS))
        (told,) = read_explanations(db, chosen)
    assert (told.verdict, [check.name for check in told.checks]) == ("fail", ["random-weights"])
    text = explanations_text([told])
    assert text.count("not trusted (0.") == 9 and "- job 1: random-weights fail (the map hardly changes" in text


def test_without_stored_explanations_there_is_no_section(made: Made, trained: Store):
    with trained.begin() as db:
        other = replace(model_by_job(db, TRAINED), train="0" * 64)
        assert read_explanations(db, other) == []
    assert explanations_text([]) == ""


def test_a_card_of_before_there_were_explanations_is_read(made: Made, tmp_path: Path):
    old = altered(made.place, tmp_path / "old", files={})
    said = json.loads((old / "card.json").read_text())
    del said["explanations"]
    (old / "card.json").write_text(json.dumps(said))
    assert card_of(open_package(old)).explanations == []
    told = Card.model_validate(said).model_copy(update={"explanations": made.card.explanations})
    assert told == made.card
