"""The topic of keys, and the vaults of processes that read it."""

import asyncio

from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import topics
from tidemill.sealing.vault import Vault


class Topic:
    """`tidemill.secrets`: readers see its records once they catch up."""

    def __init__(self):
        self.records: list[tuple[str, bytes | None]] = []
        self.vaults: list[Vault] = []
        self.is_away = False

    async def send(self, topic, key, value, *, headers=()):
        """Append."""
        assert (topic, headers) == (topics.SECRETS.name, ())
        if self.is_away:
            raise LogUnavailable
        await asyncio.sleep(0)
        self.records.append((key, value))
        return len(self.records) - 1

    def vault(self, keys, *, seals=True):
        """A process's vault."""
        seen = 0

        async def caught_up():
            nonlocal seen
            await asyncio.sleep(0)
            for key, value in self.records[seen:]:
                vault.apply(key, value)
            seen = len(self.records)

        vault = Vault(self, wrapper=keys, seals=seals, caught_up=caught_up)
        self.vaults.append(vault)
        return vault
