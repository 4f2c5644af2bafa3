"""GPUs on which jobs keep dying: nothing more is sent there in this run, so that they do not empty the queue."""

import json
from dataclasses import dataclass, field

from robustq.cluster.messages import Failed, Gpu
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.text.safe_text import hide, one_line

MOST = 3  # failures of a GPU without a job that ended well between them, after which nothing more is sent there


@dataclass
class BadGpus:
    """What became of jobs on each GPU of a run.

    failures: the latest of each GPU, why, by what each is evidence of.  bad: those that are given up, and why.
    culprits: models that failed so on more than one GPU, and so are no evidence against any.
    """

    failures: dict[Gpu, dict[str, str]] = field(default_factory=dict)
    bad: dict[Gpu, str] = field(default_factory=dict)
    culprits: set[str] = field(default_factory=set)

    def worked(self, gpu: Gpu) -> None:
        """A job ended well there."""
        self.failures.pop(gpu, None)

    def failed(self, gpu: Gpu, claimed: Claimed, failed: Failed) -> bool:
        """A job failed of the GPU; returns whether the GPU is given up for that."""
        reason = f"{failed.error_class}: {first_line(failed.message)}"
        if failed.gpu in ("unfit", "busy"):
            return self.add(gpu, f"job {claimed.id}, {claimed.fence}", reason)
        # One model may be too large for what others leave, or have an extension that was built for other GPUs.
        return failed.gpu in ("lost", "unbuilt", "crowded") and self.died(gpu, claimed, reason)

    def died(self, gpu: Gpu, claimed: Claimed, reason: str) -> bool:
        """A job or its worker ended there, for which the job's model may be the reason: each model counts once, and
        none that fares so elsewhere too. Returns whether the GPU is given up for that.
        """
        model = json.dumps(claimed.spec.get("model", claimed.id), sort_keys=True)
        elsewhere = [found for other, found in self.failures.items() if other != gpu and model in found]
        for found in elsewhere:
            found.pop(model)
        if elsewhere:
            self.culprits.add(model)
        return model not in self.culprits and self.add(gpu, model, reason)

    def add(self, gpu: Gpu, evidence: str, reason: str) -> bool:
        found = self.failures.setdefault(gpu, {})
        found[evidence] = reason
        if gpu in self.bad or len(found) < MOST:
            return False
        self.bad[gpu] = reason
        return True

    def told(self, gpu: Gpu) -> str:
        """A line on a GPU that is given up."""
        return one_line(
            hide(
                f"{name(gpu)} is given up for the rest of this run: {MOST} failures in turn there, "
                f"last: {self.bad[gpu]}"
            )
        )


def name(gpu: Gpu) -> str:
    node, number = gpu
    return f"GPU {number or '?'} of {node}"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
