"""The keys that direct producers may use, as the log tells of them."""

import asyncio
import hmac
import logging
from typing import Final

from tidemill.schemas import access, codec
from tidemill.schemas.access import DEFAULT_PROJECT, Role
from tidemill.schemas.codec import DecodeError
from tidemill.schemas.intake import IntakeError
from tidemill.schemas.messages import KeyRecord
from tidemill.schemas.ports import Clock

log = logging.getLogger(__name__)

HEARD_SECONDS_MAX: Final = 1.0
"""How long a key that nobody knows is waited for: it may have been made a moment ago."""
REFUSED_MAX: Final = 1000
"""Digests of such keys that are remembered, so that each is waited for once."""


class Keyring:
    """All keys, by the digests of their secrets: some hundred bytes each."""

    def __init__(self, fixed: str | None, clock: Clock) -> None:
        """Know one key.

        Args:
            fixed: The key of the settings, which is the default project's; None where there is none.
            clock: Unix time, for keys that expire.
        """
        self._fixed = access.digest(fixed) if fixed else None
        self._clock = clock
        self._records: dict[str, KeyRecord] = {}
        self._digests: dict[str, str] = {}
        self._refused: dict[str, None] = {}
        self._news = asyncio.Event()

    def apply(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of `tidemill.keys`; a key that is revoked stays so."""
        if value is None:
            if (gone := self._digests.pop(key, None)) is not None:
                self._records.pop(gone, None)
            return
        try:
            record = codec.decode_key(value)
        except DecodeError as error:
            log.warning("record %d of the keys cannot be read (%s)", offset, type(error).__name__)
            return
        known = self._records.get(record.sha256)
        if known is None or known.key.revoked_at is None:
            self._records[record.sha256] = record
            self._digests[key] = record.sha256
        self._news.set()
        self._news = asyncio.Event()

    async def project(self, secret: str) -> str:
        """Whose lines a key lets in.

        Raises:
            IntakeError: It is not known, revoked, expired, or may only read.
        """
        digest = access.digest(secret)
        if self._fixed is not None and hmac.compare_digest(self._fixed, digest):
            return DEFAULT_PROJECT
        record = self._records.get(digest)
        if record is None and access.is_secret(secret):
            record = await self._heard(digest)
        if record is None:
            raise IntakeError("its key is not known")
        if not record.key.opens(self._clock()):
            raise IntakeError("its key is revoked or expired")
        if not record.key.role.covers(Role.WRITE):
            raise IntakeError("its key may only read")
        return record.key.project

    async def _heard(self, digest: str) -> KeyRecord | None:
        if digest in self._refused:
            return None
        try:
            async with asyncio.timeout(HEARD_SECONDS_MAX):
                while digest not in self._records:
                    await self._news.wait()
        except TimeoutError:
            if len(self._refused) >= REFUSED_MAX:
                del self._refused[next(iter(self._refused))]
            self._refused[digest] = None
        return self._records.get(digest)
