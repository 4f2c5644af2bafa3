"""Checks of a study where its data and models are not: of names and parameters, radii among them."""

from robustq.jobs.specs import DefenceSpec
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.expand_study import guard, specs_of, train_settings


def check_settings(study: Study, origin: Origin) -> None:
    """Raises SpecError for attacks, defences and trainings that the kernels refuse, whatever the data are."""
    from robustq.jobs.submission import explanation_params  # torch
    from robustq.jobs.submission.validation import parameters

    for i, attack in enumerate(study.attacks):
        for _ in specs_of(attack, origin, ("attacks", i), parameters, explanation_params):
            pass
    for label, model in study.models.items():
        where = ("models", label)
        train_settings(study, model, origin, where, parameters)
        for part in model.defence:
            spec = DefenceSpec(name=part.name, params=part.params)
            guard(origin, (*where, "defence"), parameters.complete_defence, spec)
