"""Produces the records of a stream to Kafka, in order."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

from aiokafka.errors import KafkaError

from tidemill.client.errors import Unreachable
from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, STOP_SECONDS_MAX
from tidemill.kafka.producer import producer
from tidemill.schemas.log import topics

UNACKED_MAX: Final = 64
"""Records in flight: sent and not acknowledged yet."""
DELIVERY_SECONDS_MAX: Final = 30.0
LINGER_MS: Final = 5

Headers = Sequence[tuple[str, bytes]]


class Intake:
    """Appends to `tidemill.intake`; an asynchronous context manager. Every method may raise `Unreachable`."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._unacked: deque[asyncio.Future[Any]] = deque()
        self.first: tuple[int, int] | None = None
        """Partition and offset of the first record, once acknowledged."""

    async def __aenter__(self) -> Self:
        # Its topic exists; one that idempotently sends in order leaves nothing to be receipt apart.
        self._producer = producer(self._kafka, compression="zstd", linger_ms=LINGER_MS)
        with _translated():
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(KafkaError, OSError):
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self._producer.stop()

    async def send(self, name: str, value: bytes, headers: Headers) -> None:
        """Append a record to a stream; waits while `UNACKED_MAX` records are in flight."""
        with _translated():
            async with asyncio.timeout(DELIVERY_SECONDS_MAX):
                while len(self._unacked) >= UNACKED_MAX:
                    await self._oldest()
                self._unacked.append(
                    await self._producer.send(topics.INTAKE.name, value, key=name.encode(), headers=list(headers))
                )

    async def flush(self) -> None:
        """Wait until the broker has acknowledged every record."""
        with _translated():
            while self._unacked:
                async with asyncio.timeout(DELIVERY_SECONDS_MAX):
                    await self._oldest()

    async def _oldest(self) -> None:
        receipt = await self._unacked[0]
        self._unacked.popleft()
        if self.first is None:
            self.first = receipt.partition, receipt.offset


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unreachable(f"Kafka does not accept the lines ({type(error).__name__})") from error
