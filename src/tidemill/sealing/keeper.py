"""The vault of a process, as its settings want it, and the follower that feeds it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.follower import Follower
from tidemill.retrying import retry
from tidemill.schemas.log import topics
from tidemill.schemas.ports import Clock, Sender, Store
from tidemill.sealing.store import SealedStore
from tidemill.sealing.vault import Vault
from tidemill.sealing.wrapping import FileWrapper, KeyFileError

KEY_FILE: Final = "encryption_keys"
"""In the data folder, where the settings name none."""

ROUND_SECONDS: Final = 3600.0
KEPT: Final = 3
"""A batch may take as long as the log keeps a record, and a segment goes when its last record is due."""

log = logging.getLogger(__name__)

Tell = Callable[[str, bytes | None], object]


class Keeper:
    """What knows the keys of batches.

    Attributes:
        vault: The keys.
        follower: Feeds it.
    """

    def __init__(self, settings: Settings, kafka: Kafka, sender: Sender, *, also: Tell | None = None) -> None:
        """Set up; nothing is connected yet.

        Args:
            settings: Whether lines are sealed, and where the keys are that wrap those of batches.
            kafka: Where the topic is.
            sender: Appends to it.
            also: Told of each record of the topic: key and value.

        Raises:
            SettingsError: The file of keys cannot be used, or is needed and not there.
        """
        self._also = also
        self._news = asyncio.Event()
        """Set where a batch is deleted, or gets a key although it is."""
        self.follower = Follower(kafka, topics.SECRETS.name, self._apply)
        self.vault = Vault(sender, wrapper=wrapper(settings), seals=settings.encrypt_log, caught_up=self._catch_up)

    async def start(self) -> None:
        """Learn what the log has."""
        await self.follower.start()
        await self.follower.caught_up()

    async def stop(self) -> None:
        """Learn no more."""
        await self.follower.stop()

    def store(self, below: Store) -> Store:
        """A store whose objects of batches are sealed where their batch is."""
        return SealedStore(below, self.vault)

    async def destroy_due_keys(self, clock: Clock, kept_seconds: Callable[[], float]) -> None:
        """Destroy keys that are due for it, for as long as the process lives: at once, and those that grow old.

        Args:
            clock: Unix time.
            kept_seconds: How long the log keeps lines; infinite while that is not known.
        """
        while True:
            self._news.clear()
            await retry("destroying keys", lambda: self.vault.destroy_due_keys(clock() - KEPT * kept_seconds()))
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._news.wait()

    async def _catch_up(self) -> None:
        await retry("catching up with the keys", self.follower.catch_up, faults=TRANSIENT)

    def _apply(self, key: str, value: bytes | None, offset: int) -> None:
        self.vault.apply(key, value, offset)
        if value is not None and self.vault.is_erased(key.partition("/")[0]):
            self._news.set()
        if self._also is not None:
            self._also(key, value)


def wrapper(settings: Settings) -> FileWrapper | None:
    """The keys of the file that the settings name.

    Raises:
        SettingsError: It cannot be used, or is needed and not there.
    """
    path = key_file(settings)
    if not settings.encrypt_log and not path.exists():
        return None
    try:
        return FileWrapper(path)
    except KeyFileError as error:
        raise SettingsError(f"encryption_key_file: {error}") from error


def key_file(settings: Settings) -> Path:
    """Where the keys are that wrap those of batches."""
    return settings.encryption_key_file or settings.data / KEY_FILE
