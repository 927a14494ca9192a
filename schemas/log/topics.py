"""The table of topics, from which brokers and docs are set up."""

import hashlib
import re
from dataclasses import dataclass

from tidemill.schemas.resources.audit import KEPT_DAYS

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
TOMBSTONE_MS = 7 * DAY_MS
"""How long compacted topics keep a tombstone: a reader that was away for longer misses some."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One row of the table."""

    name: str
    key: str
    value: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    harm: str = ""
    """What an unauthorized writer could do."""
    spread: bool = True
    """Whether it has the configured number of partitions, not one."""
    compacted: bool = False
    """Whether the last record of each key is kept for ever; otherwise records are kept for `retention_ms`."""
    lag_ms: int | None = None
    """The longest time until compaction drops a record with a successor, if that matters."""
    retention_ms: int = 7 * DAY_MS
    """-1 keeps every record for ever."""
    broker_time: bool = False
    """Whether the broker sets the time of a record, not its producer."""

    def concerns(self, role: str) -> bool:
        """Whether a role reads or writes it."""
        return role in self.written_by or role in self.read_by

    @property
    def is_needed(self) -> bool:
        """Whether an unfinished batch is lost without its records."""
        return self in {COMMANDS, INTAKE, OUTCOMES, QUEUE} or is_of_requests(self.name)


COMMANDS = Topic(
    name="tidemill.commands", key="batch id", value="BatchCreated, CancelRequested, DeleteRequested",
    written_by=("api", "operator"), read_by=("ingest", "results"),
    harm="create, cancel and delete batches of any project, over any file of the store, without a key",
)  # fmt: skip
INTAKE = Topic(
    name="tidemill.intake", key="stream name", value="one or more JSONL lines",
    written_by=("producers", "api", "ingest", "operator"), read_by=("ingest",), broker_time=True,
    harm="only fill the disk: every record needs the token or key of a project",
)  # fmt: skip
OUTCOMES = Topic(
    name="tidemill.outcomes", key="batch id", value="Accepted, Opened, Sealed, Compacted, …, or result lines",
    written_by=("ingest", "processors", "results", "api", "operator"),
    read_by=("results", "processors", "operator"),
    harm="forge results for the lines of any batch",
)  # fmt: skip
BATCHES = Topic(
    name="tidemill.batches", key="batch id", value="BatchRecord",
    written_by=("results",), read_by=("api", "ingest", "processors", "webhooks", "operator"),
    spread=False, compacted=True,
    harm="falsify the state of any batch, move it to another project, or stop its work",
)  # fmt: skip
FILES = Topic(
    name="tidemill.files", key="file id", value="FileRecord",
    written_by=("api", "ingest", "results"), read_by=("api", "ingest", "operator"), spread=False, compacted=True,
    harm="give a file to another project, point it at another object of the store, or delete it",
)  # fmt: skip
DEAD = Topic(
    name="tidemill.dead", key="source", value="a record that no stage could process, the reason in headers",
    written_by=("ingest", "processors", "results", "webhooks", "api", "operator"), read_by=("api", "operator"),
    spread=False, retention_ms=14 * DAY_MS, harm="forge dead letters, which an operator might replay",
)  # fmt: skip
PROCESSORS = Topic(
    name="tidemill.processors", key="", value="none: the owner of its partition n reads n of each model's topics",
    written_by=(), read_by=("processors",), harm="do nothing: no stage reads its records",
)  # fmt: skip
CLAIMS = Topic(
    name="tidemill.claims", key="batch id", value="Claim",
    written_by=("api",), read_by=("api",), spread=False,
    harm="make a repeated create answer with another batch",
)  # fmt: skip
QUEUE = Topic(
    name="tidemill.queue", key="batch id", value="Queued, Dequeued",
    written_by=("ingest",), read_by=("ingest",), spread=False,
    harm="let batches of any project wait, or start batches over any file of the store, without a key",
)  # fmt: skip
UPLOADS = Topic(
    name="tidemill.uploads", key="upload id, or upload id / part id", value="UploadRecord, PartRecord",
    written_by=("api",), read_by=("api",), spread=False, compacted=True,
    harm="change pending uploads, or move them to another project",
)  # fmt: skip
KEYS = Topic(
    name="tidemill.keys", key="key id", value="KeyRecord, signed by the api",
    # Not compacted: otherwise a later record could remove a revocation.
    written_by=("api",), read_by=("api", "ingest", "operator"), spread=False, retention_ms=-1,
    harm="only fill the disk: readers ignore records that the api has not signed",
)  # fmt: skip
CATALOG = Topic(
    name="tidemill.catalog", key="server/name, model/name, file or partitions", value="Entry, Applied, Partitions",
    written_by=("api",), read_by=("api", "ingest", "processors", "results", "webhooks", "operator"),
    spread=False, compacted=True,
    harm="send the lines of any batch, and the keys of servers, to a server of its choice",
)  # fmt: skip
SERVERS = Topic(
    name="tidemill.servers", key="process", value="ProcessReport: what a processors process measures",
    # Nothing reads old reports, so it needs no compaction.
    written_by=("processors",), read_by=("api",), spread=False, retention_ms=HOUR_MS, broker_time=True,
    harm="show wrong figures of servers; nothing acts on them",
)  # fmt: skip
SECRETS = Topic(
    name="tidemill.secrets", key="batch id, or batch id / key id", value="Erasure of a deleted batch, Secret",
    written_by=("api", "ingest", "results"), read_by=("api", "ingest", "processors", "results", "operator"),
    spread=False, compacted=True, harm="delete any batch for good, and destroy its encryption keys",
    lag_ms=3_600_000,
)  # fmt: skip
AUDIT = Topic(
    name="tidemill.audit", key="project", value="AuditRecord",
    written_by=("api", "webhooks"), read_by=("api", "operator"), spread=False, retention_ms=KEPT_DAYS * DAY_MS,
    harm="forge audit records; none can be removed",
)  # fmt: skip
LEDGER = Topic(
    name="tidemill.ledger", key="batch id", value="LedgerRecord",
    written_by=("results",), read_by=("api",), spread=False, compacted=True,
    harm="change the costs of projects",
)  # fmt: skip
WEBHOOKS = Topic(
    name="tidemill.webhooks", key="endpoint id", value="EndpointRecord: a webhook endpoint, its secret encrypted",
    written_by=("api",), read_by=("api", "webhooks"), spread=False, compacted=True,
    harm="send the events of any project to a server of its choice",
)  # fmt: skip
EVENTS = Topic(
    name="tidemill.events", key="endpoint id", value="Due, Resend, Started",
    written_by=("api", "webhooks", "operator"), read_by=("webhooks",),
    harm="send forged events to the webhook endpoints of any project",
)  # fmt: skip
DELIVERIES = Topic(
    name="tidemill.deliveries", key="delivery id, health/endpoint id, or cursor", value="Delivery, Health, Cursor",
    written_by=("webhooks",), read_by=("api", "webhooks", "operator"), spread=False, compacted=True,
    harm="falsify the list of deliveries, and stop or repeat them",
)  # fmt: skip
STATES = Topic(
    name="tidemill-results-batches-changelog", key="batch id / owner, with a prefix (results/state/tables.py)",
    value="a batch's state (results/state/reducer.py), or some of its parts",
    written_by=("results",), read_by=("results",), compacted=True,
    harm="change the state of any batch, from the next recovery on",
)  # fmt: skip
LINE_BITMAPS = Topic(
    name="tidemill-results-lines-changelog", key="batch id / owner / chunk",
    value="two bitmaps (results/state/line_bitmap.py)",
    written_by=("results",), read_by=("results",), compacted=True,
    harm="change which lines count as done, from the next recovery on",
)  # fmt: skip
STREAMS = Topic(
    name="tidemill-intake-streams-changelog", key="batch id / owner, or decided/partition/owner",
    value="a stream on its way to be a batch (ingest/streams/stream.py)",
    written_by=("ingest",), read_by=("ingest",), compacted=True,
    harm="change which batch a stream's lines go to, from the next recovery on",
)  # fmt: skip
REQUESTS_PREFIX = "tidemill.requests."
EXPRESS_PREFIX = "tidemill.express."
EXPRESS_LINES_MAX = 1_000
"""A batch of up to this many lines uses the model's express topic, without large batches before it."""

TOPICS = (
    COMMANDS, INTAKE, OUTCOMES, BATCHES, FILES, DEAD, PROCESSORS, CLAIMS, QUEUE, UPLOADS, KEYS, CATALOG, SERVERS,
    SECRETS, LEDGER, AUDIT, WEBHOOKS, EVENTS, DELIVERIES, STATES, LINE_BITMAPS, STREAMS,
)  # fmt: skip
"""All topics except those of requests. Faust names the changelogs of its tables, but creates them too late."""

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,159}\Z")


def requests(model: str) -> Topic:
    """The topic of the requests to one model.

    In a name like `Qwen/Qwen3-8B` characters are replaced that Kafka does not allow, and a hash is appended.
    """
    return _of_requests(REQUESTS_PREFIX, model)


def express(model: str) -> Topic:
    """The topic of the requests of small batches to one model."""
    return _of_requests(EXPRESS_PREFIX, model)


def _of_requests(prefix: str, model: str) -> Topic:
    return Topic(
        name=prefix + _plain(model), key="batch id / run of lines", value="one or more JSONL lines",
        written_by=("ingest", "api", "operator"), read_by=("processors", "api", "operator"),
        harm="make calls to the model's servers, and put answers into any batch",
    )  # fmt: skip


def place(model: str) -> str:
    """The place of a model's topics in Kafka, which refuses a second topic that differs only in `.` and `_`."""
    return _plain(model).replace(".", "_")


def takes_requeued(name: str) -> bool:
    """Whether dead letters of a topic may be sent there again: its readers count a repeated record once.

    Letters of the intake hold no credential, so ingest would reject them again: their producer must send the
    lines.
    """
    return is_of_requests(name) or name in {topic.name for topic in (COMMANDS, OUTCOMES, EVENTS)}


def requeue_refusal(name: str) -> str:
    """Why dead letters may not be sent to a topic again."""
    if name == INTAKE.name:
        return "a letter of the intake holds no credential: its producer has to send the lines again"
    return f"no records are sent to '{name}' again"


def is_of_requests(name: str) -> bool:
    """Whether a topic holds requests to a model."""
    return name.startswith((REQUESTS_PREFIX, EXPRESS_PREFIX))


def _plain(model: str) -> str:
    if _PLAIN.match(model) is not None:
        return model
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", model)[:150]
    return f"{plain}-{hashlib.blake2b(model.encode(), digest_size=4).hexdigest()}"


LINES_SECONDS = min(topic.retention_ms for topic in TOPICS if topic.is_needed) // 1000
"""How long the log keeps lines, unless an operator changes the topics; no window is longer."""
