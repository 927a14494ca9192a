"""The keys and tokens that direct producers may use: what the api has signed, and nothing else."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from tidemill import keys
from tidemill.ingest.streams.stream import GROUP_RECORDS_MAX
from tidemill.kafka.connection import TRANSIENT
from tidemill.schemas.log import producer_token
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.producer_token import Claims, TokenError
from tidemill.schemas.log.signing import Verifier
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import DEFAULT_PROJECT, Role

log = logging.getLogger(__name__)

HEARD_SECONDS_MAX: Final = 1.0
"""How long it may take to read all of the log's keys, when a record has an unknown one: it may have been
made a moment ago. All such keys of the records that wait are looked for at once."""
REFUSED_MAX: Final = 2 * GROUP_RECORDS_MAX
"""Digests of keys that are not in the log, so that each is looked for once."""
TOKENS_MAX: Final = 1000
"""Tokens whose signatures need not be checked again."""


class Keyring(keys.Keyring):
    """All keys, by the digests of their secrets: some hundred bytes each."""

    def __init__(self, verifier: Verifier, clock: Clock, *, fixed: str | None, takes_keys: bool) -> None:
        """Know one key.

        Args:
            verifier: Whose signatures count.
            clock: Unix time, for keys that expire.
            fixed: Digest of the key of the settings, which is the default project's; None where there is none.
            takes_keys: Whether producers may show API keys, and not tokens alone.
        """
        super().__init__(verifier)
        self._fixed = fixed
        self._clock = clock
        self._takes_keys = takes_keys
        self._records: dict[str, KeyRecord] = {}
        self._by_id: dict[str, KeyRecord] = {}
        self._claims: dict[str, Claims] = {}
        self._refused: dict[str, None] = {}
        self.catch_up: Callable[[], Awaitable[None]] = _at_once
        """Waits until all was applied that the log has at this moment."""

    def by_id(self, key_id: str) -> KeyRecord | None:
        """A key by its id."""
        return self._by_id.get(key_id)

    def by_digest(self, sha256: str) -> KeyRecord | None:
        """The key whose secret has this digest, also if it is revoked or expired."""
        return self._records.get(sha256)

    def store(self, record: KeyRecord, signer: str) -> None:
        """Replace the record of a key."""
        del signer
        self._records[record.sha256] = self._by_id[record.key.id] = record

    async def learn(self, secrets: Iterable[str]) -> None:
        """Find out which of these are keys: unknown ones are looked for in the log, all at once."""
        if not self._takes_keys:
            return
        found = {access.digest(secret) for secret in secrets if access.is_secret(secret)}
        if not (unknown := found - self._records.keys() - self._refused.keys()):
            return
        try:
            async with asyncio.timeout(HEARD_SECONDS_MAX):
                await self.catch_up()
        except TRANSIENT as error:
            log.warning("the keys could not be looked up (%s)", type(error).__name__)
        for digest in unknown - self._records.keys():
            if len(self._refused) >= REFUSED_MAX:
                del self._refused[next(iter(self._refused))]
            self._refused[digest] = None

    async def project(self, secret: str, stream: str, logged_at: float | None) -> str:
        """Whose lines a key or a token lets in.

        Args:
            secret: The credential of a record.
            stream: The record's stream.
            logged_at: When the log got the record, by its own clock; None if the topic keeps the producer's time.

        Raises:
            IntakeError: It is not known, revoked, expired, may only read, or is for another stream.
        """
        if producer_token.is_token(secret):
            return self._project_of_token(secret, stream, self._clock() if logged_at is None else logged_at)
        if not self._takes_keys:
            raise IntakeError(
                "API keys are not taken here (intake_api_keys); make a token: `tidemill keys token --stream NAME`"
            )
        digest = access.digest(secret)
        if self._fixed is not None and hmac.compare_digest(self._fixed, digest):
            return DEFAULT_PROJECT
        record = self._records.get(digest)
        if record is None:
            await self.learn([secret])
            record = self._records.get(digest)
        if record is None:
            raise IntakeError("its key is not known")
        self._see_open(record)
        return record.key.project

    def _project_of_token(self, text: str, stream: str, at: float) -> str:
        """A token needs no look-up: the one thing that its key is asked for is whether it was revoked since."""
        digest = access.digest(text)
        try:
            if (claims := self._claims.get(digest)) is None:
                claims = producer_token.claims(self._verifier, text)
            producer_token.check(claims, stream, at)
        except TokenError as error:
            raise IntakeError(str(error)) from None
        if digest not in self._claims:
            if len(self._claims) >= TOKENS_MAX:
                del self._claims[next(iter(self._claims))]
            self._claims[digest] = claims
        if (record := self._by_id.get(claims.key)) is not None:
            self._see_open(record)
        return claims.project

    def _see_open(self, record: KeyRecord) -> None:
        if not record.key.opens(self._clock()):
            raise IntakeError("its key is revoked or expired")
        if not record.key.role.covers(Role.WRITE):
            raise IntakeError("its key may only read")


async def _at_once() -> None:
    """Nothing is followed."""
