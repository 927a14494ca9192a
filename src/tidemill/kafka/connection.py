"""Reaching a broker: time limits, what fails for a while only, and clients that stop within a bound."""

import asyncio
import functools
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka import decompression, records

REQUEST_MS_MAX = 10_000
"""How long one request to a broker may take before it is sent again."""
CONNECT_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 5.0

records.tolerate()
decompression.bound()

TRANSIENT: Final = (OSError, KafkaError)
"""Failures of the log and of the store: they pass, and say nothing against what was tried."""


class LogUnavailable(OSError):
    """The broker did not acknowledge in time. The record may have landed, or not; later it will not."""


async def check_broker(kafka: Kafka) -> None:
    """Ask any broker for the cluster's metadata, over a connection of its own.

    Raises:
        KafkaError: No broker answers.
    """
    client = AIOKafkaClient(**client_options(kafka), request_timeout_ms=REQUEST_MS_MAX)
    try:
        await client.bootstrap()
    finally:
        await client.close()


async def cluster_id(kafka: Kafka) -> str:
    """Ask the brokers for the id of their cluster; empty where they do not say.

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
    """Close a client, bounded: one whose broker is away would wait for it. It leaves no connection."""
    for end in (client.stop, functools.partial(_drop, client)):
        with suppress(KafkaError, OSError):
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await end()
                return


async def _drop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """End what a client has left at work since it could not stop in time; there is no public way."""
    if isinstance(client, AIOKafkaProducer):
        if (sending := client._sender.sender_task) is not None:  # noqa: SLF001
            sending.cancel()
        await client.client.close()
    else:
        if (fetching := client._fetcher) is not None:  # noqa: SLF001
            await fetching.close()
        await client._client.close()  # noqa: SLF001
