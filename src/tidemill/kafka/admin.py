"""Creates topics and access lists, and reads the configuration of topics."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    BrokerNotAvailableError,
    ClusterAuthorizationFailedError,
    KafkaError,
    KafkaTimeoutError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.admin import CreateAclsRequest

from tidemill.configuration.security import Kafka, client_options
from tidemill.configuration.settings import MIB, Settings
from tidemill.retrying import pause_seconds
from tidemill.schemas.log import acls, topics
from tidemill.schemas.log.acls import Acl
from tidemill.schemas.log.topics import Topic
from tidemill.wording import counted

RECORD_BYTES_MAX = 2 * MIB
"""Records stay below 1 MiB, but the broker measures a batch of them, which may be larger."""
SEGMENT_BYTES_COMPACTED = 64 * MIB
"""Small, since the broker compacts all segments but the newest."""
REPLICATION_SAFE = 3
"""With at least this replication factor, `IN_SYNC_MIN` brokers must have a record before it is acknowledged."""
IN_SYNC_MIN = 2
ATTEMPTS_MAX = 5
SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
REMAKE: Final = (
    "stop all processes, delete the topics with several partitions and the folders `state`, and start with the "
    "new number in TIDEMILL_PARTITIONS"
)
REQUEST_SECONDS_MAX = 20.0
READY_SECONDS_MAX = 120.0
"""How long a start waits for a broker that does not answer or is not ready."""

T = TypeVar("T")


_LITERAL, _PREFIXED = 3, 4
_ALLOW = 3
_ANY_HOST = "*"


_AGE: Final = "retention.ms"
_SIZE: Final = "retention.bytes"


class Retention(NamedTuple):
    """How long the log keeps the records that batches need; of a topic without a limit, infinitely long."""

    shortest: float = float("inf")
    """Seconds until the first of these topics removes a record: from then on a batch may lack it."""
    longest: float = float("inf")
    """Seconds until the last of them does: before that, keys and states may still be needed."""
    by_size: tuple[str, ...] = ()
    """The topics that also remove records by size, whatever their age."""


class TopicError(Exception):
    """The topics or access lists are wrong and cannot be changed; the text says which and why."""


class PartitionsChanged(Exception):
    """The topics have another number of partitions than the batches were written to."""


class BrokerUnavailable(TopicError):
    """The broker does not answer, or is not ready yet: another attempt may succeed."""


async def once_ready(call: Callable[[], Awaitable[T]], waits: Callable[[str], object]) -> T:
    """Repeat a call until the broker is ready, for `READY_SECONDS_MAX` at most; `waits` gets words at each pause.

    Raises:
        TopicError: The broker refuses.
        BrokerUnavailable: It was not ready in time.
    """
    deadline, failures = time.monotonic() + READY_SECONDS_MAX, 0
    while True:
        try:
            return await call()
        except BrokerUnavailable as error:
            pause = pause_seconds(failures)
            if time.monotonic() + pause > deadline:
                raise
            waits(f"{error}; next attempt in {pause:.1f} s")
        await asyncio.sleep(pause)
        failures += 1


@asynccontextmanager
async def _connected(kafka: Kafka, failure: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect, for `SECONDS_MAX` at most; raises `BrokerUnavailable` or `TopicError` with the text `failure`."""
    admin = AIOKafkaAdminClient(
        **client_options(kafka), client_id="tidemill-admin", request_timeout_ms=int(REQUEST_SECONDS_MAX * 1000)
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await admin.start()
            yield admin
    except (KafkaError, TimeoutError, OSError) as error:
        kind = BrokerUnavailable if _passes(error) else TopicError
        raise kind(f"{failure}: {str(error) or 'no answer in time'}") from error
    finally:
        await admin.close()


def _passes(error: Exception) -> bool:
    """Whether an error may end by itself. The client also gives a wrong password as a failed connection."""
    return (
        not isinstance(error, KafkaError)
        or error.retriable
        or isinstance(error, KafkaTimeoutError | BrokerNotAvailableError)
    )


def of_models(models: Iterable[str]) -> tuple[Topic, ...]:
    """The two topics of each model."""
    own = [(topics.requests(model), topics.express(model)) for model in models]
    return tuple(row for rows in own for row in rows)


async def ensure_topics(settings: Settings, kafka: Kafka, *, role: str | None = None) -> int:
    """Create the missing topics, except those of models; several processes may do this at the same time.

    A stage names its `role`, since a broker with access lists hides the topics of others from it. Returns the
    number of partitions of `commands` and `outcomes`.

    Raises:
        TopicError: The broker is unavailable or refuses; or the topics that must have the same number of
            partitions (`commands`, `outcomes` and the changelogs of their tables) have different ones.
    """
    rows = tuple(row for row in topics.TOPICS if role is None or row.concerns(role))
    async with _connected(kafka, f"The topics of {kafka} cannot be set up") as admin:
        found = await _partitions(admin, rows)
        copartitions(rows, _counts(found), settings.partitions)
        # Another process with other settings may create the missing ones first.
        found = await _completed(admin, rows, found, settings)
        return copartitions(rows, _counts(found), settings.partitions)


async def ensure_model_topics(settings: Settings, kafka: Kafka, *models: str) -> None:
    """Create the missing topics of models; see `ensure_topics`.

    Raises:
        TopicError: The broker is unavailable or refuses.
    """
    rows = of_models(models)
    async with _connected(kafka, f"The topics of models on {kafka} cannot be set up") as admin:
        await _completed(admin, rows, await _partitions(admin, rows), settings)


async def models_with_topics(kafka: Kafka, models: Iterable[str]) -> set[str]:
    """Those of the models whose topics exist.

    Raises:
        TopicError: The broker is unavailable.
    """
    rows = {model: [row.name for row in of_models([model])] for model in models}
    async with _connected(kafka, f"The topics of models on {kafka} cannot be read") as admin:
        found = await _partitions(admin, of_models(rows))
    return {model for model, names in rows.items() if all(name in found for name in names)}


async def set_acls(kafka: Kafka, wanted_acls: Iterable[Acl], users: Mapping[str, str] | None = None) -> int:
    """Create access lists and return their number; existing ones stay.

    `users` has the user of each role; by default `acls.user(role)`.

    Raises:
        TopicError: The broker is unavailable, or refuses.
    """
    rows = [_creation(acl, users or {}) for acl in wanted_acls]
    failure = f"access lists of {kafka} cannot be set"
    async with _connected(kafka, failure) as admin:
        # Any broker forwards the request to the controller, which the client may not know yet.
        node = admin._client.get_random_node()  # noqa: SLF001  not public
        answer = await admin._send_request_to_node(node, _CreateAcls(rows))  # noqa: SLF001
    for code, message in answer.creation_responses:
        if (kind := for_code(code)) is not NoError:
            refusal = BrokerUnavailable if _passes(kind()) else TopicError
            raise refusal(f"{failure}: {message or kind.__name__}")
    return len(rows)


class _CreateAcls(CreateAclsRequest):  # type: ignore[misc]  # aiokafka is untyped here
    """One request for many lists; aiokafka's own takes one list."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def build(self, request_struct_class: type[Any]) -> Any:
        """See `CreateAclsRequest`."""
        return request_struct_class(self._rows)


def _creation(acl: Acl, users: Mapping[str, str]) -> tuple[Any, ...]:
    pattern = _PREFIXED if acl.is_prefix else _LITERAL
    principal = f"User:{users.get(acl.role) or acls.user(acl.role)}"
    return (int(acl.resource), acl.name, pattern, principal, _ANY_HOST, int(acl.operation), _ALLOW)


async def topic_replicas(kafka: Kafka, names: Collection[str]) -> dict[str, list[int]]:
    """How many replicas each partition of a topic has, by name; topics that do not exist are omitted.

    Raises:
        TopicError: The broker does not answer.
    """
    async with _connected(kafka, f"the topics of {kafka} cannot be read") as admin:
        found = await admin.describe_topics()
    return {
        topic["topic"]: [len(partition["replicas"]) for partition in topic["partitions"]]
        for topic in found
        if topic["topic"] in names
    }


async def topic_configs(
    kafka: Kafka, names: Iterable[str], *, only: Iterable[str] | None = None
) -> dict[str, dict[str, str]]:
    """The configuration of topics, or `only` these values of it, by name; topics that do not exist are omitted.

    Raises:
        TopicError: The broker does not answer.
    """
    async with _connected(kafka, f"the topics of {kafka} cannot be read") as admin:
        configs = None if only is None else dict.fromkeys(only)
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs=configs) for name in names]
        answers = await admin.describe_configs(resources)
    return {
        name: {entry[0]: entry[1] for entry in entries}
        for answer in answers
        for code, _, _, name, entries in answer.resources
        if for_code(code) is NoError
    }


async def retention(kafka: Kafka, models: Iterable[str]) -> Retention:
    """The retention of the topics that a batch needs.

    Raises:
        OSError: The broker does not answer, or does not say.
    """
    rows = [row for row in (*topics.TOPICS, *of_models(models)) if row.is_needed]
    try:
        found = await topic_configs(kafka, [row.name for row in rows], only=(_AGE, _SIZE))
    except TopicError as error:
        raise OSError(str(error)) from error
    try:
        kept_ms = [int(configs.get(_AGE, -1)) for configs in found.values()]
        by_size = tuple(name for name, configs in found.items() if int(configs.get(_SIZE, -1)) >= 0)
    except (TypeError, ValueError) as error:
        raise OSError("the broker hides the retention of a topic") from error
    seconds = [ms / 1000 if ms >= 0 else float("inf") for ms in kept_ms] or [float("inf")]
    return Retention(min(seconds), max(seconds), by_size)


def copartitions(rows: Iterable[Topic], found: Mapping[str, int], partitions: int) -> int:
    """The number of partitions of those topics whose records of one batch must reach the same process.

    Args:
        rows: All topics that matter.
        found: The partitions of the existing ones.
        partitions: What the others would get.

    Raises:
        TopicError: They have, or would have, different numbers.
    """
    together = [row.name for row in rows if row.spread and not topics.is_of_requests(row.name)]
    first, *others = [(name, found.get(name, partitions)) for name in together]
    for name, count in others:
        if count != first[1]:
            existing = {found[each] for each in together if each in found}
            fix = f"Partitions cannot be added once there are batches: let all end or cancel them, {REMAKE}."
            if len(existing) == 1:
                fix = f"Set TIDEMILL_PARTITIONS={existing.pop()}: the number of those that exist cannot change."
            raise TopicError(
                f"{first[0]} has or would get {counted(first[1], 'partition')} and {name} {count}; they must have "
                f"the same number. {fix}"
            )
    return first[1]


def check_kept(kept: int | None, partitions: int) -> None:
    """Check the number of partitions against the one that the catalog keeps, if it does.

    Raises:
        PartitionsChanged: It is another one.
    """
    if kept not in {None, partitions}:
        raise PartitionsChanged(
            f"The topics have {counted(partitions, 'partition')}, and the batches were written to {kept}: some of "
            "their records would not be found, and their answers be lost. Partitions cannot be taken away: "
            f"{REMAKE}; create unfinished batches again. Start an api first: it notes the new number."
        )


def _counts(leaders: Mapping[str, list[int]]) -> dict[str, int]:
    return {name: len(found) for name, found in leaders.items()}


async def _partitions(admin: AIOKafkaAdminClient, rows: Iterable[Topic]) -> dict[str, list[int]]:
    """The leaders of the partitions of each existing topic; -1 for a partition without a leader."""
    names = {row.name for row in rows}
    return {
        topic["topic"]: [partition["leader"] for partition in topic["partitions"]]
        # A request without names gets no errors for missing topics.
        for topic in await admin.describe_topics()
        if topic["topic"] in names
    }


async def _completed(
    admin: AIOKafkaAdminClient, rows: Iterable[Topic], found: dict[str, list[int]], settings: Settings
) -> dict[str, list[int]]:
    """Create the topics that are not among those found; returns the leaders of all once they have some.

    A partition needs a leader before a first producer comes, which would fail.
    """
    if missing := [row for row in rows if row.name not in found]:
        await _create(admin, missing, settings)
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            found = await _partitions(admin, rows)
            if all(min(found.get(row.name) or [-1]) >= 0 for row in rows):
                break
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"The new topics did not appear within {SECONDS_MAX} s.")
            await asyncio.sleep(POLL_SECONDS)
    return found


async def _create(admin: AIOKafkaAdminClient, missing: list[Topic], settings: Settings) -> None:
    for attempt in range(1, ATTEMPTS_MAX + 1):
        answer = await admin.create_topics([_new(row, settings) for row in missing])
        errors = {
            name: (for_code(code), message)
            for name, code, message in answer.topic_errors
            if for_code(code) not in {NoError, TopicAlreadyExistsError}
        }
        if not errors:
            return
        passes = all(_passes(kind()) for kind, _ in errors.values())
        if attempt == ATTEMPTS_MAX or not passes:
            texts = [
                f"{name}: {(message or kind.__name__).rstrip('.')}" for name, (kind, message) in errors.items()
            ]
            kinds = {kind for kind, _ in errors.values()}
            refused = kinds & {TopicAuthorizationFailedError, ClusterAuthorizationFailedError}
            fix = " An administrator creates them: `tidemill acls --apply`." if refused else ""
            failure = BrokerUnavailable if passes else TopicError
            raise failure(f"Topics cannot be created: {'; '.join(texts)}.{fix}")
        await asyncio.sleep(POLL_SECONDS * 2**attempt)


def configs_of(row: Topic, replicas: int) -> dict[str, str]:
    """The configuration that a topic needs."""
    configs: dict[str, object] = {"max.message.bytes": RECORD_BYTES_MAX}
    if row.compacted:
        configs |= {
            "cleanup.policy": "compact", "segment.bytes": SEGMENT_BYTES_COMPACTED,
            "delete.retention.ms": topics.TOMBSTONE_MS,
        }  # fmt: skip
        if row.lag_ms is not None:
            configs |= {"max.compaction.lag.ms": row.lag_ms, "segment.ms": row.lag_ms}
    else:
        configs |= {"cleanup.policy": "delete", _AGE: row.retention_ms, _SIZE: -1}
        if 0 <= row.retention_ms < topics.DAY_MS:
            # The broker removes whole segments, and keeps the newest one for a week.
            configs["segment.ms"] = row.retention_ms
    if row.broker_time:
        configs["message.timestamp.type"] = "LogAppendTime"
    if replicas >= REPLICATION_SAFE:
        # Acknowledged records are on two disks, even while one broker is unavailable.
        configs["min.insync.replicas"] = IN_SYNC_MIN
    return {name: str(value) for name, value in configs.items()}


def _new(row: Topic, settings: Settings) -> NewTopic:
    return NewTopic(
        name=row.name,
        num_partitions=settings.partitions if row.spread else 1,
        replication_factor=settings.replication,
        topic_configs=configs_of(row, settings.replication),
    )
