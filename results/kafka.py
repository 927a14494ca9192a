"""The door to what the log still has of the results of a partition (`ports.History`)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from tidemill.configuration.security import Kafka
from tidemill.kafka.history import reading
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import DecodeError, Headers
from tidemill.sealing.records import opened_outcome
from tidemill.sealing.vault import NoKey, Vault


class LogHistory:
    """Reads `outcomes`; every reading has a connection of its own."""

    def __init__(self, kafka: Kafka, vault: Vault) -> None:
        self._kafka = kafka
        self._vault = vault

    async def outcomes(self, partition: int, since: float) -> AsyncGenerator[tuple[Headers, bytes], None]:
        """See `ports.History`."""
        async with (
            reading(self._kafka) as reader,
            aclosing(reader.records(topics.OUTCOMES.name, [partition], since=since)) as records,
        ):
            async for record in records:
                with suppress(NoKey, DecodeError):
                    yield await opened_outcome(self._vault, record.headers, record.value or b"")
