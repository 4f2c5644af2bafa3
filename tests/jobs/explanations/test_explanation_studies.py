"""Explanation entries of a study: the jobs that they mean, and what is refused, in one line with its place."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from robustlib.evaluation.explanation_stability import USUAL
from robustq.jobs.errors import SpecError
from robustq.jobs.specs import EvalSpec, WorstSpec
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.cost import explanation_work
from robustq.jobs.submission.dry_run import shown
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.study_schema import study_schema

HEAD = """name: s
models:
  a: {arch: lenet5, train: {epochs: 1}}
attacks:
"""


def planned(folder: Path, attacks: str, head: str = HEAD) -> list[Planned]:
    path = folder / "s.yaml"
    path.write_text(f"{head}{attacks}examples: 10\n")
    study, origin = load_study(path, {})
    return expand(resolve(study, origin, folder, folder))


def explained(jobs: list[Planned]) -> list[Any]:
    specs = [one.spec for one in jobs]
    return [spec.attack for spec in specs if isinstance(spec, EvalSpec) and spec.attack.name == "explain"]


def test_a_job_for_each_method_and_radius_with_everything_spelt_out(tmp_path: Path):
    text = """  - name: explain
    method: [{name: integrated-gradients, steps: 7}, grad-cam]
    against: [explanation-attack, noise, {name: pgd, steps: 3}]
    norm: L2
    eps: [0.5, 1/4]
  - {name: pgd, norm: L2, eps: [0.25, 0.5]}
"""
    jobs = planned(tmp_path, text)
    found = explained(jobs)
    assert [(one.params["method"], one.norm, one.eps) for one in found] == [
        (method, "L2", eps) for eps in (0.5, 0.25) for method in ("integrated-gradients", "grad-cam")
    ]
    assert found[0].params["options"] == {"steps": 7, "baseline": 0.0}
    names = [one["name"] for one in found[0].params["against"]]
    assert names == ["noise", "explanation-attack", "pgd"]
    attack, pgd = found[0].params["against"][1:]
    assert attack["params"] == {"steps": 40, "step_size": None, "sharpness": 20.0, "looks": 4}
    assert pgd["params"]["steps"] == 3
    settings = {name: found[0].params[name] for name in ("target", "share", "radius", "curve_steps", "baseline")}
    assert settings == {"target": "predicted", "share": 0.1, "radius": 1, "curve_steps": 16, "baseline": 0.0}
    assert all(one.curve == () for one in found) and len({one.key for one in jobs}) == len(jobs)
    # Worst cases are of the attacks alone.
    worst = [one.spec for one in jobs if isinstance(one.spec, WorstSpec)]
    keys = {one.key for one in jobs if isinstance(one.spec, EvalSpec) and one.spec.attack.name == "explain"}
    assert worst and not keys & {key for spec in worst for key in spec.evals}
    # 7 gradients a map: of the clean image, of randomised weights, of three disturbed ones; 5 of the search: 4 looks and
    # the clean map; 40 steps of two gradients; 3 of PGD.
    assert explanation_work(found[0].params).gradients == 7 * (2 + 3 + 5) + 2 * 40 + 3
    assert shown(found[0]) == "explain integrated-gradients"  # as a dry run names it
    costs = {one.key: one.cost for one in jobs}
    assert all(costs[key] > 0 for key in keys)


def test_noise_is_always_beside_and_the_usual_is_filled_in(tmp_path: Path):
    (one,) = explained(planned(tmp_path, "  - {name: explain, eps: 0.1}\n"))
    assert [part["name"] for part in one.params["against"]] == [name for name, _ in USUAL]
    (one,) = explained(planned(tmp_path, "  - {name: explain, against: square, eps: 0.1}\n"))
    assert [part["name"] for part in one.params["against"]] == ["noise", "square"]
    assert explained(planned(tmp_path, "  - {name: explain, against: deepfool, norm: L2, eps: 1}\n"))
    assert one.recipe.startswith("integrated-gradients(baseline=0.0, steps=50) under noise + square(")


def test_no_audit_is_added_at_the_radius_of_an_explanation(tmp_path: Path):
    head = HEAD.replace("models:", "audit: full\nmodels:")
    text = "  - {name: explain, method: saliency, eps: 0.3}\n  - {name: fgsm, eps: 0.1}\n"
    jobs = [one.spec for one in planned(tmp_path, text, head)]
    assert [spec.attack.eps for spec in jobs if isinstance(spec, EvalSpec) and spec.attack.name == "audit"] == [0.1]


REFUSED = [
    ("method: grad-kam", 6, "unknown method 'grad-kam', expected one of: saliency, .*: did you mean 'grad-cam'?"),
    ("method: []", 6, "explain: expected method as a name or a list of some, got an empty list"),
    ("method: [saliency, 3]", 6, "explain: expected method as a name or as {name: NAME, PARAMETER: VALUE}, got 3"),
    ("method: {name: smoothgrad, sample: 3}", 6, "smoothgrad has no parameter 'sample', .*: did you mean 'samples'?"),
    ("method: {name: smoothgrad, samples: 0}", 6, "smoothgrad: expected samples of at least 1, got 0"),
    ("method: {name: occlusion, stride: 5}", 5, "occlusion: expected a stride of at most the window, 4, got 5"),
    ("method: {name: lime, grid: 30}", 5, "expected a grid of at most 8 for 8x8 images, got 30"),
    ("method: {name: kernel-shap, samples: 90}", 5, "kernel_shap: expected samples of at least 128, .* got 90"),
    ("method: {name: grad-cam, layer: stem}", 5, "grad_cam: unknown layer 'stem', expected .*"),
    ("against: [pgdd]", 6, "against: unknown name 'pgdd', expected one of: noise, .*: did you mean 'pgd'?"),
    ("against: [autoattack]", 6, "against: autoattack is several attacks in turn, expected one: noise, .*"),
    ("method: {name: saliency, steps: 3}", 6, "saliency has no parameter 'steps', it has: none"),
    ("against: [corruption]", 6, "against: corruption makes no image within a radius on the model itself, .*"),
    ("against: [transfer]", 6, "against: transfer makes no image within a radius on the model itself, .*"),
    ("against: {name: noise, queries: 2}", 6, "against: noise has no parameters, it has the norm and .*"),
    ("against: [pgd, {name: pgd, steps: 3}]", 6, "against: pgd is named twice"),
    ("against: {name: pgd, step: 3}", 6, "pgd has no parameter 'step', it has: .*: did you mean 'steps'.*"),
    ("against: {name: explanation-attack, share: 1}", 6, "explanation-attack has no parameter 'share', it has: .*"),
    ("against: {name: spsa, queries: 1}", 6, "spsa: expected queries of at least .*, got 1: it would not come to a step"),
    ("steps: 9", 5, "explain has no parameter 'steps', integrated-gradients has: expected it there, "
     r"method: {name: integrated-gradients, steps: 9}"),
    ("shares: 0.1", 5, "explain has no parameter 'shares', it has: .*: did you mean 'share'?"),
    ("target: truth", 5, "explain: expected target to be one of predicted, true, got 'truth': did you mean 'true'?"),
    ("share: 1.5", 5, "explain: expected share above 0 and at most 1, got 1.5"),
    ("curve_steps: 0", 5, "explain: expected curve_steps of at least 1, got 0"),
    ("restarts: 2", 5, "explain has no restarts and no surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "line", "words"), REFUSED, ids=[entry for entry, _, _ in REFUSED])
def test_what_is_wrong_is_refused_with_its_line(entry: str, line: int, words: str, tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        planned(tmp_path, f"  - name: explain\n    {entry}\n    eps: 0.1\n")
    pattern = re.sub(r"([{?])", r"\\\1", rf"{tmp_path}/s.yaml:{line}: {words}")
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)


EPS = [
    ("", 5, "explain expects eps, a radius or a list of some"),
    ("    eps: 0\n", 6, "explain: expected eps above 0, got 0.0"),
    (
        "    eps: [0.1, 8]\n",
        6,
        r"explain: expected eps in \[0, 1\] for images in \[0, 1\], got 8: did you mean 8/255\?",
    ),
]


@pytest.mark.parametrize(("entry", "line", "words"), EPS, ids=["none", "zero", "large"])
def test_radii_that_are_none_are_refused_with_their_line(entry: str, line: int, words: str, tmp_path: Path):
    with pytest.raises(SpecError, match=rf"^{tmp_path}/s.yaml:{line}: {words}$"):
        planned(tmp_path, f"  - name: explain\n{entry}")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "{arch: lenet5, dropout_at_inference: 0.2, train: {epochs: 1}}",
            "explain expects models that always give the same answer, a is randomised",
        ),
        (
            "{file: 'http://127.0.0.1:9/predict', options: {}}",
            "explain expects networks, whose weights it randomises for its checks; a only answers: .*",
        ),
    ],
    ids=["randomised", "address"],
)
def test_models_that_cannot_be_judged_are_refused(model: str, words: str, tmp_path: Path):
    head = HEAD.replace("{arch: lenet5, train: {epochs: 1}}", model)
    with pytest.raises(SpecError, match=rf"^{tmp_path}/s.yaml:5: {words}$"):
        planned(tmp_path, "  - {name: explain, method: occlusion, against: square, eps: 0.1}\n", head)


def test_the_schema_takes_what_a_submission_takes():
    validator = jsonschema.Draft7Validator(study_schema())

    def errors(entry: str) -> list[str]:
        study = yaml.safe_load(f"{HEAD}  - name: explain\n    eps: 0.1\n    {entry}\n")
        return [error.message for error in validator.iter_errors(study)]

    taken = (
        "method: saliency",
        "method: [saliency, {name: lime, grid: 4}]",
        "against: {name: explanation-attack, looks: 2}",
        "target: 'true'",
    )
    assert [errors(entry) for entry in taken] == [[]] * len(taken)
    # What only an image or a model tells, a submission finds.
    told = [entry for entry, line, _ in REFUSED if line == 6 and "noise" not in entry and "twice" not in entry]
    for entry in told:
        if entry not in ("method: []", "against: [pgd, {name: pgd, steps: 3}]", "against: {name: spsa, queries: 1}"):
            assert errors(entry), entry
