"""The run of one job: a spec in, kernels called, a result out."""

from collections.abc import Iterator

from robustlib.settings import EXPLAIN
from robustq.jobs.running.context import Context, Progress, Result
from robustq.jobs.running.evaluation import run_evaluation
from robustq.jobs.running.explanations import run_explanations
from robustq.jobs.running.training import run_training
from robustq.jobs.specs import EvalSpec, TrainSpec


def run(spec: TrainSpec | EvalSpec, context: Context) -> Iterator[Progress | Result]:
    """Do the job: progress as it goes, then its result."""
    match spec:
        case TrainSpec():
            yield from run_training(spec, context)
        case EvalSpec() if spec.attack.name == EXPLAIN:
            yield from run_explanations(spec, context)
        case EvalSpec():
            yield from run_evaluation(spec, context)
