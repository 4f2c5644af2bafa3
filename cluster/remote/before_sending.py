"""Checks of a study where its data and models are not: of names and parameters, radii among them."""

from robustq.jobs.specs import DefenceSpec
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.expand_study import guard, specs_of, train_settings


def check_settings(study: Study, origin: Origin) -> None:
    """Raises SpecError for attacks, defences and trainings that the kernels refuse, whatever the data are."""
    from robustq.jobs.submission import explanation_params, validate  # torch

    for i, attack in enumerate(study.attacks):
        for _ in specs_of(attack, origin, ("attacks", i), validate, explanation_params):
            pass
    for label, model in study.models.items():
        where = ("models", label)
        train_settings(study, model, origin, where, validate)
        for part in model.defence:
            spec = DefenceSpec(name=part.name, params=part.params)
            guard(origin, (*where, "defence"), validate.complete_defence, spec)
