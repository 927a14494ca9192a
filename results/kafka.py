"""The door to what the log still has of the results of a partition (`ports.Outcomes`)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.kafka.history import reading
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import DecodeError, Headers
from tidemill.schemas.ports import Edge
from tidemill.sealing.records import opened_outcome
from tidemill.sealing.vault import NoKey, Vault

CLOCK_SECONDS_MAX: Final = 3600.0
"""By how much the clocks of those who write may differ."""


class OutcomeHistory:
    """Reads `outcomes`; every reading has a connection of its own."""

    def __init__(self, kafka: Kafka, vault: Vault) -> None:
        self._kafka = kafka
        self._vault = vault

    async def outcomes(self, partition: int, since: float) -> AsyncGenerator[tuple[Headers, bytes], None]:
        """See `ports.Outcomes`."""
        at_ms = max(0, int((since - CLOCK_SECONDS_MAX) * 1000))
        async with (
            reading(self._kafka) as reader,
            aclosing(reader.records(topics.OUTCOMES.name, {partition: Edge(at_ms=at_ms)})) as records,
        ):
            async for record in records:
                with suppress(NoKey, DecodeError):
                    yield await opened_outcome(self._vault, record.headers, record.value or b"")
