"""The keys and tokens of direct producers; only those that the api has signed count."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from tidemill import keys
from tidemill.bounded_dict import BoundedDict
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
"""How long a look-up of unknown keys waits until all keys of the log are known: one may be new."""
REFUSED_MAX: Final = 2 * GROUP_RECORDS_MAX
"""Digests of unknown keys that are kept, so that each is looked up once."""
TOKENS_MAX: Final = 1000
"""Tokens that are kept, so that the signature of each is checked once."""


class Keyring(keys.Keyring):
    """All keys, by the digests of their secrets, in some hundred bytes each."""

    def __init__(self, verifier: Verifier, clock: Clock, *, fixed: str | None, takes_keys: bool) -> None:
        """Begin with the key of the settings.

        Args:
            verifier: Verifies signatures of keys and tokens.
            clock: Unix time, for keys that expire.
            fixed: Digest of the default project's key in the settings, if they have one.
            takes_keys: Whether producers may use API keys besides tokens.
        """
        super().__init__(verifier)
        self._fixed = fixed
        self._clock = clock
        self._takes_keys = takes_keys
        self._records: dict[str, KeyRecord] = {}
        self._by_id: dict[str, KeyRecord] = {}
        self._claims: BoundedDict[str, Claims] = BoundedDict(TOKENS_MAX)
        self._refused: BoundedDict[str, None] = BoundedDict(REFUSED_MAX)
        self.catch_up: Callable[[], Awaitable[None]] = _at_once
        """Waits until all keys that the log has at this moment are applied."""

    def by_id(self, key_id: str) -> KeyRecord | None:
        """A key by its id."""
        return self._by_id.get(key_id)

    def store(self, record: KeyRecord, signer: str) -> None:
        """Add a key, or replace its record."""
        del signer
        self._records[record.sha256] = self._by_id[record.key.id] = record

    async def learn(self, secrets: Iterable[str]) -> None:
        """Look up secrets that are unknown keys, all at once."""
        if not self._takes_keys:
            return
        found = {access.digest(secret) for secret in secrets if access.is_secret(secret)}
        if not (unknown := found - self._records.keys() - self._refused.keys()):
            return
        try:
            async with asyncio.timeout(HEARD_SECONDS_MAX):
                await self.catch_up()
        except TRANSIENT as error:
            log.warning("could not look up the keys of records (%s)", type(error).__name__)
        for digest in unknown - self._records.keys():
            self._refused[digest] = None

    async def project(self, secret: str, stream: str, logged_at: float | None) -> str:
        """The project of a key or token.

        Args:
            secret: The credential of a record.
            stream: The record's stream.
            logged_at: When the log got the record, by its own clock; None if the topic keeps the producer's time.

        Raises:
            IntakeError: The credential is unknown, revoked, expired, may only read, or is for another stream.
        """
        if producer_token.is_token(secret):
            return self._project_of_token(secret, stream, self._clock() if logged_at is None else logged_at)
        if not self._takes_keys:
            raise IntakeError(
                "API keys are not accepted (intake_api_keys). Make a token: `tidemill keys token --stream NAME`"
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
        self._check_valid(record)
        return record.key.project

    def _project_of_token(self, text: str, stream: str, at: float) -> str:
        """The project of a token, unless its key is known to be revoked; a token needs no look-up.

        The api's own records name no key: the api checked the caller's key before it answered.
        """
        digest, claims = access.digest(text), None
        try:
            claims = self._claims.get(digest) or producer_token.claims(self._verifier, text)
            producer_token.check(claims, stream, at)
        except TokenError as error:
            if claims is None or claims.sub != stream:
                raise IntakeError(str(error)) from None
            # One of a revoked key proves nothing, also if it has expired.
            self._check_key(claims)
            raise IntakeError(str(error), claims.project) from None
        if digest not in self._claims:
            self._claims[digest] = claims
        self._check_key(claims)
        return claims.project

    def _check_key(self, claims: Claims) -> None:
        if claims.key is not None and (record := self._by_id.get(claims.key)) is not None:
            self._check_valid(record)

    def _check_valid(self, record: KeyRecord) -> None:
        if not record.key.opens(self._clock()):
            raise IntakeError("its key is revoked or expired")
        if not record.key.role.covers(Role.WRITE):
            raise IntakeError("its key may only read")


async def _at_once() -> None:
    """Return at once: no follower is set."""
