"""The API keys of the log, as the api and ingest fold them."""

import logging
from abc import ABC, abstractmethod

from tidemill import metrics
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.signing import SignatureError, Verifier

log = logging.getLogger(__name__)


class Keyring(ABC):
    """API keys by their ids: only records that a trusted key signed.

    A revoked key stays revoked, whatever record comes later: the topic keeps every record, so an older one of the
    same key may be read again.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    @abstractmethod
    def by_id(self, key_id: str) -> KeyRecord | None:
        """A key by its id."""

    @abstractmethod
    def store(self, record: KeyRecord, signer: str) -> None:
        """Replace the record of a key; `signer` is the id of the key that signed it."""

    def put(self, record: KeyRecord, signer: str) -> None:
        """Add a record that a trusted key signed."""
        known = self.by_id(record.key.id)
        if known is None or known.key.revoked_at is None or record.key.revoked_at is not None:
            self.store(record, signer)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of `tidemill.keys`; one without a trusted signature changes nothing."""
        try:
            self.put(*self._verifier.key_record(key, value))
        except SignatureError as error:
            metrics.KEYS_REFUSED.inc()
            log.warning("ignoring record %d of the keys: %s", offset, error)
