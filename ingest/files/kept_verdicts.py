"""Keeps verdicts on input files in the store, for attempts after a crash.

Models, aliases and limits may have changed since `Accepted`, so another check might find other models, faults or
copies than the log has. A verdict is kept before `Accepted`. A small plain one is not: its batch is published
within milliseconds, and costs no write more.
"""

import logging
from typing import Final

import msgspec

from tidemill.ingest.files.packing import RequestPublisher
from tidemill.ingest.files.verdict import Copies, Passed
from tidemill.schemas import UNREADABLE
from tidemill.schemas.bitmap import Bitmap
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.log.part import verdict_key
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX
from tidemill.schemas.ports import NotFound, Store, once, read_all
from tidemill.storage.s3_errors import Refused

log = logging.getLogger(__name__)


class _Kept(msgspec.Struct):
    """See `Passed`."""

    total: int
    models: tuple[str, ...]
    numbers: bytes
    copies: bytes
    """The bitmap of their places."""
    copies_by_model: dict[int, int]
    faulty: list[int]
    line_bytes_max: int


_kept: Final = msgspec.json.Decoder(_Kept)


class KeptVerdicts:
    """The verdicts in the store."""

    def __init__(self, store: Store, requests: RequestPublisher) -> None:
        self._store = store
        self._requests = requests

    async def keep(self, command: BatchCreated, passed: Passed) -> None:
        """Keep a verdict, unless it is small and plain.

        Raises:
            OSError: The store failed.
            NoKey: The batch is deleted.
        """
        is_plain = len(passed.models) == 1 and not (passed.copies.count or passed.faulty)
        if is_plain and passed.total <= EXPRESS_LINES_MAX:
            return
        await self._requests.begin(command.batch.id, command.project)
        kept = _Kept(
            total=passed.total,
            models=passed.models,
            numbers=passed.numbers,
            copies=bytes(passed.copies.places.content),
            copies_by_model=dict(passed.copies.by_model),
            faulty=sorted(passed.faulty),
            line_bytes_max=passed.line_bytes_max,
        )
        await self._store.write(verdict_key(command.batch.id), once(msgspec.json.encode(kept)))

    async def of(self, batch_id: str) -> Passed | None:
        """The verdict that an earlier attempt kept.

        Raises:
            OSError: The store failed.
        """
        try:
            kept = _kept.decode(await read_all(self._store.read(verdict_key(batch_id))))
        except (NotFound, Refused):
            # S3 refuses a missing key to an account that may not list; the input shows what else is wrong.
            return None
        except UNREADABLE:
            log.exception("the verdict on the input of %s is damaged; it is checked again", batch_id)
            return None
        copies = Copies(places=Bitmap())
        copies.places.content[:] = kept.copies
        copies.by_model.update(kept.copies_by_model)
        return Passed(
            total=kept.total,
            models=kept.models,
            numbers=kept.numbers,
            copies=copies,
            faulty=frozenset(kept.faulty),
            line_bytes_max=kept.line_bytes_max,
        )
