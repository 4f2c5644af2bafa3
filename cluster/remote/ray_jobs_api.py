"""A client of Ray's Jobs API: a submitted command runs on the cluster to its end, whether anybody watches or not."""

import hashlib
import logging
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from robustlib.names import did_you_mean
from robustq.cluster.ray_connection import check_token, import_ray
from robustq.cluster.remote.http_exchange import bounded
from robustq.cluster.remote.log_tail import Follower
from robustq.cluster.remote.upload import lines_left_out, prepared_upload, staging_folder, summary, upload_contents
from robustq.jobs.errors import JobsFailed, RobustqError, RunError, SpecError
from robustq.jobs.study.study import load_study
from robustq.jobs.text.notes import note
from robustq.jobs.text.safe_text import address, brief, has_password, hide

PREFIX = "robustq-"
BEGIN = "robustq-begins"  # printed before a command's own words: what comes earlier is Ray's
RAYS_OWN = "Running entrypoint for job "  # and this may come later
OUR_ERROR = "robustq: "  # which is told once, at the end
MOST_LETTERS = 2**30  # of an answer
STOP_SECONDS = 30  # until a study that is told to stop must have ended: Ray kills its driver after three
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# A shell on the head reads this: the store is the head's own, beside the driver. It is handed on in the environment,
# since the words of a command, in which a password may stand, are seen by whoever lists the head's processes or jobs.
STORE_THERE = '"${ROBUSTQ_STORE:-sqlite:///$HOME/.robustq/results.db}"'


class Cluster:
    """A cluster's Jobs API."""

    def __init__(self, url: str, *, insecure: bool = False, store: str | None = None):
        if urlsplit(url).scheme not in ("http", "https"):
            raise SpecError(
                f"--cluster: expected the address of a Ray dashboard such as http://HEAD:8265, got {address(url)!r}"
            )
        if store is not None and has_password(store):
            raise SpecError(
                f"--store {address(store)} has a password, which others see in the list of the cluster's jobs: set "
                "ROBUSTQ_STORE on the head, where Ray is started, and leave out --store"
            )
        check_token(url, insecure=insecure)
        ray = import_ray(own_token=False)
        self.url = url
        # Of what another server answers Ray's client makes whatever it may: ValueError, KeyError, TypeError, ...
        self.errors = (OSError, RuntimeError, ImportError, ValueError, LookupError, TypeError, AttributeError)
        self.errors += (ray.exceptions.AuthenticationError,)
        try:
            from ray.job_submission import JobSubmissionClient

            self.client = bounded(JobSubmissionClient)(url)
            for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
                logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every upload
        except self.errors as error:
            raise in_one_line(url, error) from error
        self.insecure = insecure
        self.store = STORE_THERE if store is None else shlex.quote(store)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except self.errors as error:
            raise in_one_line(self.url, error) from error

    def send(self, command: str, folder: Path, name: str, about: dict[str, str]) -> str:
        """Start a command line of robustq on the head, with a folder as its working directory; returns its number."""
        return self.call(
            self.client.submit_job,
            entrypoint=f"export ROBUSTQ_STORE={self.store}; echo {BEGIN}; exec python -m robustq {command}",
            # Without the last a head whose shell names a cluster would send the command on, to itself.
            runtime_env={
                "working_dir": str(folder),
                "env_vars": {"RAY_USAGE_STATS_ENABLED": "0", "ROBUSTQ_CLUSTER": ""},
            },
            metadata=about,
            submission_id=name,
        )

    def follow(self, number: str, out: Callable[[str], None]) -> str:
        """Hand on what a command prints until it ends; returns how it ended. Lost connections are tried again."""
        return Follower(
            self.client,
            number,
            state=lambda: self.state(number),
            log=lambda: self.call(self.logs, number),
            out=out,
            ended=ENDED,
            tell=note,
        ).follow()

    def state(self, number: str) -> str:
        return str(self.call(self.client.get_job_status, number).value)

    def logs(self, number: str) -> str:
        found = self.client.get_job_logs(number)
        if not isinstance(found, str):
            raise TypeError(f"expected what a job printed as text, got {type(found).__name__}")
        return found

    def runs(self) -> list[Any]:
        """The studies sent here, the latest first."""
        jobs = [job for job in self.call(self.client.list_jobs) if (job.metadata or {}).get("robustq") == "study"]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)


def in_one_line(url: str, error: Exception) -> Exception:
    """What goes wrong with a cluster in one line; what goes wrong with a file here stays as it is."""
    if isinstance(error, RobustqError) or (isinstance(error, OSError) and error.errno and error.filename is not None):
        return error
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    url, first = address(url), hide(first)
    if "authentication" in first.lower() or re.search(r"status code 40[13]\b|\b40[13] Client Error", first):
        return RunError(f"the cluster {url} asks for its token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to it")
    if isinstance(error, ImportError) or "ray[default]" in str(error):
        return RunError("a cluster is reached with Ray's dashboard packages: pip install 'robustq[cluster]'")
    answered = isinstance(error, ValueError | LookupError | TypeError | AttributeError)
    if answered or "status code" in first:
        first = brief(first, 300).strip("'\"")
        return RunError(f"the cluster {url} cannot be used: it answers otherwise than Ray's dashboard does ({first})")
    return RunError(f"the cluster {url} cannot be used: {first}")


def submit_study(
    cluster: Cluster,
    study: Path,
    options: Sequence[str],
    requested: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[str, str]:
    """Send a study with its folder; a driver on the head runs it. Returns its number and what happened, in words.

    requested: what is sent although it looks like a secret or git ignores it.  tell: hears what is sent and what not.
    """
    checked, _ = load_study(study, {})
    found = upload_contents(study, requested)
    with prepared_upload(study, found) as (folder, digest):
        # Another store or other options ask for something else, though the study be the same.
        request = hashlib.sha256(repr((digest, cluster.store, *options)).encode()).hexdigest()
        base = f"{PREFIX}{checked.name}-{request[:8]}"
        earlier = {str(job.submission_id): str(job.status.value) for job in cluster.runs()}
        names = [base, *(f"{base}-{n}" for n in range(2, len(earlier) + 3))]
        if going := next((name for name in names if earlier.get(name, ENDED[0]) not in ENDED), None):
            return going, "runs already"
        name = next(name for name in names if name not in earlier)
        insecure = ["--insecure"] if cluster.insecure else []
        for line in (*lines_left_out(found), f"{summary(found)}; --dry-run lists them"):
            tell(line)
        words = ["run", f"study/{study.resolve().name}", "--address", "auto", *insecure, *options]
        return cluster.send(shlex.join(words), folder, name, {"robustq": "study", "name": checked.name}), "sent"


def attach(cluster: Cluster, name: str | None, out: Callable[[str], None]) -> None:
    """Follow a study that was sent, by its number or name, the latest where none is given, until it has ended.

    Raises JobsFailed where it did not end well.
    """
    found = find_run(cluster, name)
    state = cluster.follow(found, out)
    if state != "SUCCEEDED":
        raise JobsFailed(f"{found} ended as {state}: see above; submitting the study again goes on where it stopped")


def find_run(cluster: Cluster, name: str | None) -> str:
    runs = cluster.runs()
    chosen = [run for run in runs if name in (None, run.submission_id, run.metadata.get("name"))]
    if not chosen:
        numbers = [str(run.submission_id) for run in runs]
        meant = did_you_mean(name, [*numbers, *(run.metadata.get("name") for run in runs)])
        known = f"{', '.join(numbers) or 'none'}{meant}"
        raise SpecError(f"there is no study {name or ''} on {address(cluster.url)}, there are: {known}")
    return str(chosen[0].submission_id)


def stop(cluster: Cluster, name: str | None) -> str:
    """End the driver of a study: it gives its jobs back to the queue. Returns its number and what became of it.

    Ray answers before the driver is gone, and one that was about to end may end well: its state is waited for.
    """
    found = find_run(cluster, name)
    cluster.call(cluster.client.stop_job, found)
    deadline = time.monotonic() + STOP_SECONDS
    while (state := cluster.state(found)) not in ENDED:
        if time.monotonic() > deadline:
            raise RunError(f"{found} was asked to stop and is {state} after {STOP_SECONDS} s; ask again")
        time.sleep(0.2)
    return f"{found} stopped" if state == "STOPPED" else f"{found} had ended before, as {state}"


def run_command(
    cluster: Cluster,
    words: Sequence[str],
    out: Callable[[str], None] = lambda text: None,
    most: int = MOST_LETTERS,
) -> str:
    """Run a command that reads or changes the store on the head; returns what it printed, told to `out` as it comes.

    most: letters of an answer that are taken.  Raises RunError with its own line where it did not end well.
    """
    answer = CommandOutput(out, most)
    with staging_folder() as folder:
        name = f"{PREFIX}ask-{time.time_ns():x}"
        cluster.send(shlex.join(words), folder, name, {"robustq": "question"})
        state = cluster.follow(name, answer.feed)
    cluster.call(cluster.client.delete_job, name)
    if state != "SUCCEEDED":
        lines = [line.removeprefix(OUR_ERROR).strip() for line in answer.lines if line.startswith(OUR_ERROR)]
        raise RunError(f"on {address(cluster.url)}: {lines[-1] if lines else ' '.join(answer.lines).strip() or state}")
    return "".join(answer.lines)


class CommandOutput:
    """What a command prints, whole line by whole line, without what Ray prints beside it."""

    def __init__(self, out: Callable[[str], None], most: int = MOST_LETTERS):
        self.out, self.left = out, most
        self.begun = False
        self.unfinished = ""
        self.lines: list[str] = []

    def feed(self, text: str) -> None:
        self.left -= len(text)
        if self.left < 0:
            raise RunError("the cluster's answer does not end: it was left off")
        lines = (self.unfinished + text).splitlines(keepends=True)
        self.unfinished = "" if text.endswith("\n") else lines.pop()
        for line in lines:
            if self.begun and not line.startswith((RAYS_OWN, OUR_ERROR)):
                self.out(line)
            if self.begun and not line.startswith(RAYS_OWN):
                self.lines.append(line)
            self.begun |= line == f"{BEGIN}\n"
