"""The door to Kafka's administration: topics are made from the table, and what exists is left as it is."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.admin import CreateAclsRequest

from tidemill.configuration.security import Kafka, client_options
from tidemill.configuration.settings import MIB, Settings
from tidemill.schemas.log import acls, topics
from tidemill.schemas.log.acls import Acl
from tidemill.schemas.log.topics import Topic

RECORD_BYTES_MAX = 2 * MIB
"""Records are kept below 1 MiB; a batch of them, which is what the broker measures, may be larger."""
SEGMENT_BYTES_COMPACTED = 64 * MIB
"""Only what has left the newest segment is compacted, so that one is kept small."""
REPLICATION_SAFE = 3
"""From so many copies on a record has to be on `IN_SYNC_MIN` brokers before it is acknowledged."""
IN_SYNC_MIN = 2
ATTEMPTS_MAX = 5
SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
REQUEST_SECONDS_MAX = 20.0


_LITERAL, _PREFIXED = 3, 4
_ALLOW = 3
_ANY_HOST = "*"


class TopicError(Exception):
    """The topics are not as Tidemill needs them and cannot be made so; the text says which and why."""


def wanted(models: Iterable[str]) -> tuple[Topic, ...]:
    """The whole table: the fixed topics, and the two of requests for each model."""
    own = [(topics.requests(model), topics.express(model)) for model in models]
    return (*topics.TOPICS, *(row for rows in own for row in rows))


async def ensure_topics(
    settings: Settings, kafka: Kafka, models: Iterable[str] | None = None, *, role: str | None = None
) -> int:
    """Have every topic of the table and of the configured models; several may do this at one time.

    Where all of them are there, this only looks. Who may not create topics is told which are missing.

    Args:
        settings: Partitions and copies of a topic that is made.
        kafka: Where, and how to get in.
        models: Each gets a topic of requests; by default those of the settings.
        role: Only the topics that this one reads or writes, since a broker with access lists shows it no others.

    Returns:
        How many partitions `commands` and `outcomes` have.

    Raises:
        TopicError: The broker is out of reach or refuses, or `commands`, `outcomes` and the changelogs of their
            tables, which belong together, exist with different numbers of partitions.
    """
    rows = wanted(settings.models if models is None else models)
    if role is not None:
        rows = tuple(row for row in rows if row.concerns(role))
    admin = AIOKafkaAdminClient(
        **client_options(kafka), client_id="tidemill-admin", request_timeout_ms=int(REQUEST_SECONDS_MAX * 1000)
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await admin.start()
            found = await _partitions(admin, rows)
            missing = [row for row in rows if row.name not in found]
            partitions = _copartitions(rows, found, settings.partitions)
            if missing:
                await _create(admin, missing, settings)
                await _wait_for(admin, rows)
                # Another process, with another number set, may have been the first.
                partitions = _copartitions(rows, await _partitions(admin, rows), settings.partitions)
            return partitions
    except (KafkaError, TimeoutError, OSError) as error:
        raise TopicError(f"The topics of {kafka} cannot be set up: {error or 'no answer in time'}") from error
    finally:
        await admin.close()


async def set_acls(kafka: Kafka, wanted_acls: Iterable[Acl], users: Mapping[str, str] | None = None) -> int:
    """Have these access lists; one that is there already is left as it is, and none is taken away.

    Args:
        kafka: Where, and how to get in as somebody who may alter access lists.
        wanted_acls: The lists.
        users: The user of each role, where it is not `acls.user(role)`.

    Returns:
        How many there are.

    Raises:
        TopicError: The broker is out of reach, or refuses.
    """
    rows = [_creation(acl, users or {}) for acl in wanted_acls]
    admin = AIOKafkaAdminClient(
        **client_options(kafka), client_id="tidemill-admin", request_timeout_ms=int(REQUEST_SECONDS_MAX * 1000)
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await admin.start()
            # Any broker passes it on to the controller, of which a client may not know yet. It has no public way.
            node = admin._client.get_random_node()  # noqa: SLF001
            answer = await admin._send_request_to_node(node, _CreateAcls(rows))  # noqa: SLF001
    except (KafkaError, TimeoutError, OSError) as error:
        raise TopicError(f"access lists of {kafka} cannot be set: {error or 'no answer in time'}") from error
    finally:
        await admin.close()
    for code, message in answer.creation_responses:
        if (kind := for_code(code)) is not NoError:
            raise TopicError(f"access lists of {kafka} cannot be set: {message or kind.__name__}")
    return len(rows)


class _CreateAcls(CreateAclsRequest):  # type: ignore[misc]  # aiokafka is untyped here
    """One request for many lists: the client library's own has room for one."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def build(self, request_struct_class: type[Any]) -> Any:
        """The request as the broker's version has it."""
        return request_struct_class(self._rows)


def _creation(acl: Acl, users: Mapping[str, str]) -> tuple[Any, ...]:
    pattern = _PREFIXED if acl.is_prefix else _LITERAL
    principal = f"User:{users.get(acl.role) or acls.user(acl.role)}"
    return (int(acl.resource), acl.name, pattern, principal, _ANY_HOST, int(acl.operation), _ALLOW)


async def topic_configs(kafka: Kafka, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What is set about topics, by name; one that does not exist is left out.

    Raises:
        TopicError: The broker does not answer.
    """
    admin = AIOKafkaAdminClient(
        **client_options(kafka), client_id="tidemill-admin", request_timeout_ms=int(REQUEST_SECONDS_MAX * 1000)
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await admin.start()
            asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
            answers = await admin.describe_configs(asked)
    except (KafkaError, TimeoutError, OSError) as error:
        raise TopicError(f"the topics of {kafka} cannot be asked for: {error or 'no answer in time'}") from error
    finally:
        await admin.close()
    return {
        name: {entry[0]: entry[1] for entry in entries}
        for answer in answers
        for code, _, _, name, entries in answer.resources
        if for_code(code) is NoError
    }


async def kept_seconds(kafka: Kafka, models: Iterable[str]) -> float:
    """How long the log keeps everything that a batch needs: the shortest of the topics it goes through.

    Raises:
        OSError: The broker does not answer.
    """
    rows = [row for row in wanted(models) if row.is_needed]
    try:
        found = await topic_configs(kafka, [row.name for row in rows])
    except TopicError as error:
        raise OSError(str(error)) from error
    kept = [int(configs.get("retention.ms", -1)) for configs in found.values()]
    return min((ms / 1000 for ms in kept if ms >= 0), default=float("inf"))


def _copartitions(rows: Iterable[Topic], found: dict[str, list[int]], partitions: int) -> int:
    """How many partitions has what belongs to one batch: all of it has to meet in one process."""
    together = [row.name for row in rows if row.spread and not topics.is_of_requests(row.name)]
    first, *others = [(name, len(found[name]) if name in found else partitions) for name in together]
    for name, count in others:
        if count != first[1]:
            raise TopicError(
                f"{first[0]} has or would get {first[1]} partitions and {name} {count}; they must have the same "
                "number. Give one of them more partitions, or set TIDEMILL_PARTITIONS to the number of the one "
                "that exists."
            )
    return first[1]


async def _partitions(admin: AIOKafkaAdminClient, rows: Iterable[Topic]) -> dict[str, list[int]]:
    """The leaders of the partitions of each topic that exists; where there is none yet it is negative."""
    names = {row.name for row in rows}
    return {
        topic["topic"]: [partition["leader"] for partition in topic["partitions"]]
        # To ask for all of them is the one question whose answer has no errors for those that are missing.
        for topic in await admin.describe_topics()
        if topic["topic"] in names
    }


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
        if attempt == ATTEMPTS_MAX or not all(kind.retriable for kind, _ in errors.values()):
            told = "; ".join(
                f"{name}: {(message or kind.__name__).rstrip('.')}" for name, (kind, message) in errors.items()
            )
            kinds = {kind for kind, _ in errors.values()}
            refused = kinds & {TopicAuthorizationFailedError, ClusterAuthorizationFailedError}
            mend = " An administrator makes them: `tidemill acls --apply`." if refused else ""
            raise TopicError(f"Topics cannot be made: {told}.{mend}")
        await asyncio.sleep(POLL_SECONDS * 2**attempt)


def _new(row: Topic, settings: Settings) -> NewTopic:
    configs: dict[str, object] = {"max.message.bytes": RECORD_BYTES_MAX}
    if row.compacted:
        configs |= {"cleanup.policy": "compact", "segment.bytes": SEGMENT_BYTES_COMPACTED}
        if row.lag_ms is not None:
            configs |= {"max.compaction.lag.ms": row.lag_ms, "segment.ms": row.lag_ms}
    else:
        configs |= {"cleanup.policy": "delete", "retention.ms": row.retention_ms}
    if row.retention_ms < 0:
        configs["retention.bytes"] = -1
    if row.broker_time:
        configs["message.timestamp.type"] = "LogAppendTime"
    if settings.replication >= REPLICATION_SAFE:
        # What is acknowledged is on two disks at least, and one broker may be away all the same.
        configs["min.insync.replicas"] = IN_SYNC_MIN
    return NewTopic(
        name=row.name,
        num_partitions=settings.partitions if row.spread else 1,
        replication_factor=settings.replication,
        topic_configs={name: str(value) for name, value in configs.items()},
    )


async def _wait_for(admin: AIOKafkaAdminClient, rows: tuple[Topic, ...]) -> None:
    """A topic that was just made is not known at once; without it a first producer would fail."""
    patience = time.monotonic() + SECONDS_MAX
    while not await _all_led(admin, rows):
        if time.monotonic() > patience:
            raise TopicError(f"The topics that were made did not appear in {SECONDS_MAX} s.")
        await asyncio.sleep(POLL_SECONDS)


async def _all_led(admin: AIOKafkaAdminClient, rows: tuple[Topic, ...]) -> bool:
    found = await _partitions(admin, rows)
    return all(found.get(row.name) and min(found[row.name]) >= 0 for row in rows)
