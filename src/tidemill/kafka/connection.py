"""Reaching a broker: time limits, what fails for a while only, and clients that stop within a bound."""

import asyncio
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


async def reachable(kafka: Kafka) -> None:
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
    """Close a client, bounded: one whose broker is away would wait for it."""
    with suppress(KafkaError, OSError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await client.stop()
