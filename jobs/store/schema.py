"""The store's tables. Units: seconds, bytes, fractions; eps and distances in units of images in [0, 1]."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import JSON, Boolean

from robustlib.settings import EXPLANATION_MEASURES

SCHEMA_VERSION = 10  # raise it together with a step in jobs/store/migrations

STATES = ("blocked", "queued", "leased", "running", "done", "failed", "cancelled")

metadata = MetaData()


def foreign(target: str, *, primary_key: bool = False, index: bool | None = None) -> Column[int]:
    return Column(
        f"{target}_id", Integer, ForeignKey(f"{target}.id"), nullable=False, primary_key=primary_key, index=index
    )


meta = Table(
    "robustq_meta",
    metadata,
    Column("schema_version", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

driver = Table(
    "driver",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started_at", Float, nullable=False),  # as the clock was; it tells no process from another
    Column("started_at", Float, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
    Column("stopped_at", Float),
    Column("version", Text, nullable=False),
    Column("process", Text),  # its identity: a pid may be used again; null or empty where it is not known
)

sweep = Table(
    "sweep",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("spec", JSON, nullable=False),
    Column("identity", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("cancelled", Boolean, nullable=False, server_default=text("false")),  # it wants none of its jobs
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("arch", Text),
    Column("defence", Text),
    Column("dataset", Text),
    Column("attack", Text),
    Column("norm", Text),
    Column("eps", Float),
    Column("seed", Integer, nullable=False),
    Column("recipe", Text),
    Column("bundle_key", String(64), nullable=False),
    Column("subject", String(64)),  # of an evaluation: a hash of the model with its weights and of the data
    Column("cost", Float, nullable=False, server_default="1"),  # estimated, in units that only compare
    Column("parts", Integer, nullable=False, server_default="0"),  # shards that it was split into
    Column("gpu_share", Float),  # of a GPU that it was found to need; null where nothing is known
    Column("timeout_seconds", Float),  # most that an attempt may take; null where the driver's own limit holds
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("max_crashes", Integer, nullable=False, server_default="5"),
    Column("not_before", Float, nullable=False, server_default="0"),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("lease_owner", String(32), ForeignKey("driver.id")),
    Column("lease_expires_at", Float),
    Column("progress_done", Integer),
    Column("progress_total", Integer),
    Column("progress_note", Text),
    Column("error_class", Text),
    Column("error_message", Text),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    CheckConstraint(f"state in {STATES}", name="job_state"),
    Index(
        "job_next",
        text("priority DESC"),
        "id",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index("job_leased", "lease_owner", sqlite_where=text("state in ('leased', 'running')")),
    Index("job_state", "state", "cost"),
    Index("job_bundle", "bundle_key", "state"),
    # All that v_results has of a job, so that filters find theirs without reading specs, which fill SQLite's rows.
    # PostgreSQL keeps long values beside the table.
    Index(
        "job_asked", "attack", "eps", "norm", "seed", "kind", "arch", "defence", "dataset", "recipe", "subject", "key"
    ).ddl_if(dialect="sqlite"),
)

job_dep = Table(
    "job_dep",
    metadata,
    foreign("job", primary_key=True),
    Column("needs_id", Integer, ForeignKey("job.id"), primary_key=True, index=True),
)

sweep_job = Table(
    "sweep_job",
    metadata,
    foreign("sweep", primary_key=True),
    foreign("job", primary_key=True, index=True),
    Column("model", Text, nullable=False),  # what this sweep calls the job's model
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", Integer, primary_key=True),
    foreign("job"),
    Column("n", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("driver_id", String(32), ForeignKey("driver.id"), nullable=False),
    Column("node", Text),
    Column("pid", Integer),
    Column("gpu_ids", Text),
    Column("gpus", Float),  # that it held, perhaps a share of one; null where it is not known
    Column("cpus", Float),  # cores that it held
    Column("log", Text),  # where on the node what its worker printed lies
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", Text),
    Column("error_class", Text),
    Column("traceback", Text),
    UniqueConstraint("job_id", "n"),
)

result = Table(
    "result",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("fence", Integer, nullable=False),
    Column("n", Integer, nullable=False),
    Column("clean_accuracy", Float),  # null for a probe, which evaluates nothing
    Column("clean_accuracy_low", Float),
    Column("clean_accuracy_high", Float),
    Column("robust_accuracy", Float),
    Column("robust_accuracy_low", Float),
    Column("robust_accuracy_high", Float),
    Column("any_draw_accuracy", Float),
    Column("verdict", Text),  # the worst of its checks: pass, warn, fail; null where nothing was checked
    Column("distance_median", Float),
    Column("distance_mean", Float),
    Column("distance_median_low", Float),  # 95 % interval of the median; null for fewer than six distances
    Column("distance_median_high", Float),
    Column("queries", BigInteger),  # of all examples, over a search of several radii down to this one
    Column("queries_most", Integer),  # of one example at this radius
    Column("seconds", Float, nullable=False),
    Column("device", Text, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("extra", JSON),
    Column("recorded_at", Float, nullable=False),
)

example_blob = Table(
    "example_blob",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("n", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
)

check_result = Table(
    "check_result",
    metadata,
    foreign("job", primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Float),  # null where the check had nothing to look at
    Column("threshold", Float),
    Column("verdict", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("examples", JSON, nullable=False),  # places in the test split that show it
)

# What audits found, beside their results: it bears on the other results of the same subject.
audit = Table(
    "audit",
    metadata,
    foreign("job", primary_key=True),
    Column("subject", String(64), nullable=False, index=True),
    Column("norm", Text, nullable=False),
    Column("eps", Float, nullable=False),
    Column("robust_accuracy", Float, nullable=False),
    Column("verdict", Text, nullable=False),
)

# What explanations came to under each thing that was done to the images: means over them with 95 % intervals.
# The per-example numbers are in example_blob: see jobs/store/explanations/measures.py.
explanation = Table(
    "explanation",
    metadata,
    foreign("job", primary_key=True),
    Column("against", Text, primary_key=True),  # clean, noise, explanation-attack, or an attack on the class
    Column("method", Text, nullable=False),
    Column("target", Text, nullable=False),  # the class that is explained: predicted or true
    Column("n", Integer, nullable=False),  # images that were explained
    Column("kept", Integer, nullable=False),  # of them those that still have the explained class
    *(Column(f"{name}{end}", Float) for name in EXPLANATION_MEASURES for end in ("", "_low", "_high")),
)

artifact = Table(
    "artifact",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("bytes", BigInteger().with_variant(Integer, "sqlite"), nullable=False),
    Column("created_at", Float, nullable=False),
)

job_artifact = Table(
    "job_artifact",
    metadata,
    foreign("job", primary_key=True),
    Column("role", Text, primary_key=True),
    Column("sha256", String(64), ForeignKey("artifact.sha256"), nullable=False),
)

event = Table(
    "event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("job_id", Integer, ForeignKey("job.id"), index=True),
    Column("fence", Integer),
    Column("driver_id", String(32)),
    Column("kind", Text, nullable=False),
    Column("data", JSON),
)
