"""Connections to Kafka: time limits, transient errors, and clients that stop within a bound."""

import asyncio
import functools
import uuid
from collections.abc import Collection
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka import decompression
from tidemill.schemas import ids
from tidemill.schemas.log import topics

REQUEST_MS_MAX = 10_000
"""How long the client waits for an answer before it sends a request again."""
CONNECT_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 5.0

decompression.limit_decompression()

TRANSIENT: Final = (OSError, KafkaError)
"""Failures of the log and of the store: they are temporary, and prove nothing against a record."""


class LogUnavailable(OSError):
    """The broker did not answer in time. A record that is not in the log yet never will be."""


class LogRefuses(LogUnavailable):
    """The broker refuses a record, and will until its topic is configured in another way."""


async def check_broker(kafka: Kafka) -> None:
    """Request the cluster's metadata over a new connection.

    Raises:
        KafkaError: No broker answers.
    """
    client = AIOKafkaClient(**client_options(kafka), request_timeout_ms=REQUEST_MS_MAX)
    try:
        await client.bootstrap()
    finally:
        await client.close()


async def cluster_id(kafka: Kafka) -> str:
    """The id of the cluster; empty if the brokers do not report one.

    Raises:
        KafkaError: No broker answers.
    """
    admin = AIOKafkaAdminClient(**client_options(kafka), request_timeout_ms=REQUEST_MS_MAX)
    try:
        await admin.start()
        return str((await admin.describe_cluster()).get("cluster_id") or "")
    finally:
        await admin.close()


async def topic_identities(kafka: Kafka, names: Collection[str]) -> dict[str, str]:
    """The identity of each topic: the id of the cluster, `/`, and the id that the topic got when it was created.

    Brokers before 2.8, or with an `inter.broker.protocol.version` before it, give topics no ids, and the identity
    ends with the slash.

    Raises:
        LogUnavailable: No broker answers, or a topic does not exist.
    """
    admin = AIOKafkaAdminClient(**client_options(kafka), request_timeout_ms=REQUEST_MS_MAX)
    try:
        await admin.start()
        node = admin._client.get_random_node()  # noqa: SLF001  not public
        answer = await admin._send_request_to_node(node, _Metadata(names))  # noqa: SLF001
    except (IncompatibleBrokerVersion, NotImplementedError):
        cluster = await cluster_id(kafka)
        return dict.fromkeys(names, f"{cluster}/")
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(str(error) or type(error).__name__) from error
    finally:
        await admin.close()
    for code, name, *_ in answer.topics:
        if code:
            raise LogUnavailable(f"{for_code(code).__name__}: {name}")
    return {
        name: f"{answer.cluster_id or ''}/{topic_id if topic_id != ids.NIL else ''}"
        for _, name, topic_id, *_ in answer.topics
    }


async def identity_of_files(kafka: Kafka) -> str:
    """The identity of `tidemill.files`, which is that of the log; raises `LogUnavailable` likewise."""
    return (await topic_identities(kafka, [topics.FILES.name]))[topics.FILES.name]


class _Uuid(AbstractType[str]):  # type: ignore[misc]  # aiokafka is untyped here
    @classmethod
    def encode(cls, value: str) -> bytes:
        return uuid.UUID(value).bytes

    @classmethod
    def decode(cls, data: BytesIO) -> str:
        return str(uuid.UUID(bytes=data.read(16)))


_TEXT: Final = CompactString("utf-8")
_PARTITION: Final = (
    ("error", Int16), ("index", Int32), ("leader", Int32), ("epoch", Int32), ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)), ("offline", CompactArray(Int32)), ("tags", TaggedFields),
)  # fmt: skip


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_ms", Int32),
        ("brokers", CompactArray(
            ("id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)
        )),
        ("cluster_id", _TEXT), ("controller_id", Int32),
        ("topics", CompactArray(
            ("error", Int16), ("name", _TEXT), ("id", _Uuid), ("is_internal", Boolean),
            ("partitions", CompactArray(*_PARTITION)), ("operations", Int32), ("tags", TaggedFields),
        )),
        ("tags", TaggedFields),
    )  # fmt: skip


class _MetadataStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("creates", Boolean), ("with_operations", Boolean), ("tags", TaggedFields),
    )  # fmt: skip


class _Metadata(Request[_MetadataStruct]):  # type: ignore[misc]
    """The first version with the ids of topics that also finds them by name; aiokafka has none of these."""

    API_KEY = 3

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[Any]) -> Any:
        """See `Request`."""
        return request_struct_class([(ids.NIL, name, {}) for name in self._names], False, False, {})


async def stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Close a client and its connections within a bound: without a broker, `client.stop` waits for one."""
    for end in (client.stop, functools.partial(_disconnect, client)):
        with suppress(KafkaError, OSError):
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await end()
                return


async def _disconnect(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Stop the tasks and connections of a client that did not stop in time; aiokafka has no public call for it."""
    if isinstance(client, AIOKafkaProducer):
        if (task := client._sender.sender_task) is not None:  # noqa: SLF001
            task.cancel()
        await client.client.close()
    else:
        if (fetcher := client._fetcher) is not None:  # noqa: SLF001
            await fetcher.close()
        await client._client.close()  # noqa: SLF001
