"""The vault of a process and the follower that fills it, according to the settings."""

import asyncio
import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka.connection import TRANSIENT, identity_of_files
from tidemill.kafka.follower import Follower
from tidemill.retrying import retry
from tidemill.schemas.log import topics
from tidemill.schemas.ports import Clock, Sender, Store
from tidemill.sealing.store import SealedStore
from tidemill.sealing.vault import Vault
from tidemill.sealing.wrapping import KEY_FILE, FileWrapper, KeyFileError
from tidemill.storage.address import open_store

ROUND_SECONDS: Final = 3600.0
KEPT: Final = 3
"""Longest times that a record or a batch lives until a key is destroyed: a batch may run for one, and the log
removes only whole segments."""

OnRecord = Callable[[str, bytes | None], object]


class KeyManager:
    """The keys of batches in a process, and the follower that reads them from the log."""

    def __init__(
        self, settings: Settings, kafka: Kafka, sender: Sender, *, on_record: OnRecord | None = None
    ) -> None:
        """Connect nothing yet; `on_record` gets the key and value of each record of the topic.

        Raises:
            SettingsError: The key file is invalid, or missing although lines are sealed.
        """
        self._settings = settings
        self._on_record = on_record
        self._deleted: asyncio.Queue[str] | None = None
        """Batches that were deleted, or got a key afterwards, since `destroy_due_keys` began; None before."""
        self.follower = Follower(kafka, topics.SECRETS.name, self._apply)
        self.vault = Vault(sender, wrapper=wrapper(settings), seals=settings.encrypt_log, caught_up=self._catch_up)

    async def start(self) -> None:
        """Read all keys on the log."""
        await self.follower.start()
        await self.follower.caught_up()

    async def stop(self) -> None:
        """Stop reading."""
        await self.follower.stop()

    def open_store(self) -> Store:
        """Open the store of the settings, which then seals the objects of sealed batches; the caller closes it."""
        settings = self._settings
        identity = functools.partial(identity_of_files, self.follower.kafka)
        below = open_store(settings.store_url, reserve_bytes=settings.disk_reserve_bytes, identity=identity)
        return SealedStore(below, self.vault)

    async def destroy_due_keys(
        self, clock: Clock, kept_seconds: Callable[[], float], is_over: Callable[[str], bool]
    ) -> None:
        """Destroy the keys of deleted batches at once, and old keys every hour; never returns.

        `clock` may return -inf while the time is in doubt, by which no key is old.
        `kept_seconds` returns the longest time that a record or a batch lives; infinite while it is unknown.
        `is_over` says whether this process is responsible for a batch, and knows that it is over.
        """
        self._deleted = asyncio.Queue()
        while True:
            await retry(
                "destroying keys", lambda: self.vault.destroy_due_keys(clock() - KEPT * kept_seconds(), is_over)
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    while True:
                        batch_id = await self._deleted.get()
                        await retry("destroying keys", functools.partial(self.vault.destroy_known, batch_id))

    async def _catch_up(self) -> None:
        await retry("catching up with the keys", self.follower.catch_up, faults=TRANSIENT)

    def _apply(self, key: str, value: bytes | None, offset: int) -> None:
        self.vault.apply(key, value, offset)
        batch_id = key.partition("/")[0]
        if self._deleted is not None and value is not None and self.vault.is_erased(batch_id):
            self._deleted.put_nowait(batch_id)
        if self._on_record is not None:
            self._on_record(key, value)


def wrapper(settings: Settings) -> FileWrapper | None:
    """The wrapping keys of the key file; None without a file if lines are not sealed.

    Raises:
        SettingsError: The file is invalid, or missing although lines are sealed.
    """
    path = key_file(settings)
    if not settings.encrypt_log and not path.exists():
        return None
    try:
        return FileWrapper(path)
    except KeyFileError as error:
        raise SettingsError(f"encryption_key_file: {error}") from error


def key_file(settings: Settings) -> Path:
    """The file with the wrapping keys."""
    return settings.encryption_key_file or settings.data / KEY_FILE
