"""Connections to Kafka: time limits, transient errors, and clients that stop within a bound."""

import asyncio
import functools
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka import decompression

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
