"""The topics: one table that the broker is set up from and the docs are checked against."""

import hashlib
import re
from dataclasses import dataclass

DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One row of the table."""

    name: str
    key: str
    value: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    spread: bool = True
    """Whether it has the set number of partitions, rather than one."""
    compacted: bool = False
    """Whether the last record of each key is kept for good; else records go after `retention_ms`."""
    retention_ms: int = 7 * DAY_MS

    @property
    def is_needed(self) -> bool:
        """Whether a batch that is at work is lost with its records."""
        return self in {COMMANDS, INTAKE, OUTCOMES} or is_of_requests(self.name)


COMMANDS = Topic(
    name="tidemill.commands", key="batch id", value="BatchCreated, CancelRequested",
    written_by=("api",), read_by=("ingest", "results"),
)  # fmt: skip
INTAKE = Topic(
    name="tidemill.intake", key="stream name", value="one or more JSONL lines",
    written_by=("producers",), read_by=("ingest",),
)  # fmt: skip
OUTCOMES = Topic(
    name="tidemill.outcomes", key="batch id", value="Accepted, Opened, Sealed, Compacted, …, or result lines",
    written_by=("ingest", "processors", "results"), read_by=("results", "processors"),
)  # fmt: skip
BATCHES = Topic(
    name="tidemill.batches", key="batch id", value="BatchRecord",
    written_by=("results",), read_by=("api", "ingest", "processors"), spread=False, compacted=True,
)  # fmt: skip
FILES = Topic(
    name="tidemill.files", key="file id", value="FileRecord",
    written_by=("api", "ingest", "results"), read_by=("api", "ingest"), spread=False, compacted=True,
)  # fmt: skip
DEAD = Topic(
    name="tidemill.dead", key="source", value="a record nothing could read, the reason in headers",
    written_by=("ingest", "processors", "results"), read_by=("operator",), spread=False,
    retention_ms=14 * DAY_MS,
)  # fmt: skip
CLAIMS = Topic(
    name="tidemill.claims", key="batch id", value="Claim",
    written_by=("api",), read_by=("api",), spread=False,
)  # fmt: skip
UPLOADS = Topic(
    name="tidemill.uploads", key="upload id, or upload id / part id", value="UploadRecord, PartRecord",
    written_by=("api",), read_by=("api",), spread=False, compacted=True,
)  # fmt: skip
KEYS = Topic(
    name="tidemill.keys", key="key id", value="KeyRecord",
    written_by=("api",), read_by=("api", "ingest"), spread=False, compacted=True,
)  # fmt: skip
SECRETS = Topic(
    name="tidemill.secrets", key="batch id", value="Erasure of a deleted batch",
    written_by=("api", "results"), read_by=("api", "ingest", "processors", "operator"),
    spread=False, compacted=True,
)  # fmt: skip
LEDGER = Topic(
    name="tidemill.ledger", key="batch id", value="LedgerRecord",
    written_by=("results",), read_by=("api",), spread=False, compacted=True,
)  # fmt: skip
STATES = Topic(
    name="tidemill-results-batches-changelog", key="batch id", value="a batch's state (results/fold.py)",
    written_by=("results",), read_by=("results",), compacted=True,
)  # fmt: skip
TALLIES = Topic(
    name="tidemill-results-lines-changelog", key="batch id / chunk", value="two bitmaps (results/tally.py)",
    written_by=("results",), read_by=("results",), compacted=True,
)  # fmt: skip
STREAMS = Topic(
    name="tidemill-intake-streams-changelog", key="batch id, or decided/partition",
    value="a stream on its way to be a batch (ingest/flow.py)",
    written_by=("ingest",), read_by=("ingest",), compacted=True,
)  # fmt: skip
REQUESTS_PREFIX = "tidemill.requests."
EXPRESS_PREFIX = "tidemill.express."
EXPRESS_LINES_MAX = 1_000
"""A batch of up to so many lines goes by a model's express topic, where no large batch lies before it."""

TOPICS = (
    COMMANDS, INTAKE, OUTCOMES, BATCHES, FILES, DEAD, CLAIMS, UPLOADS, KEYS, SECRETS, LEDGER, STATES, TALLIES,
    STREAMS,
)  # fmt: skip
"""All but those of requests. Faust names the changelogs of its tables, and would make them too late."""

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,159}\Z")


def requests(model: str) -> Topic:
    """The topic of the requests to one model.

    A name that Kafka does not take (`Qwen/Qwen3-8B`) is made plain, with a hash that keeps it apart from others.
    """
    return Topic(
        name=REQUESTS_PREFIX + _plain(model), key="batch id / run of lines", value="one or more JSONL lines",
        written_by=("ingest",), read_by=("processors",),
    )  # fmt: skip


def express(model: str) -> Topic:
    """The topic of the requests of small batches to one model; else it is as the other."""
    return Topic(
        name=EXPRESS_PREFIX + _plain(model), key="batch id / run of lines", value="one or more JSONL lines",
        written_by=("ingest",), read_by=("processors",),
    )  # fmt: skip


def is_of_requests(name: str) -> bool:
    """Whether a topic is one of the two kinds that a model has."""
    return name.startswith((REQUESTS_PREFIX, EXPRESS_PREFIX))


def _plain(model: str) -> str:
    if _PLAIN.match(model) is not None:
        return model
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", model)[:150]
    return f"{plain}-{hashlib.blake2b(model.encode(), digest_size=4).hexdigest()}"
