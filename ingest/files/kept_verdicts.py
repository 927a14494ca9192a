"""Keeps verdicts on input files in the store, for attempts after a crash.

Models, aliases and limits may have changed since `Accepted`, so another check might find other models, faults or
copies than the log has. A verdict is kept before `Accepted` or `Rejected`. A small plain one is kept only once its
publication has failed: if all goes well, its batch is published within milliseconds, and costs no write more.

While a partition changes hands, two processes may check a batch at the same moment. The first verdict in the store
counts for both; otherwise one would publish lines by another verdict than the one that results has.
"""

import logging
from typing import Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tidemill.ingest.files.packing import RequestPublisher
from tidemill.ingest.files.verdict import Failed, Passed
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.log.part import verdict_key
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX
from tidemill.schemas.ports import NotFound, Store, once, read_all
from tidemill.storage.s3_errors import Refused

log = logging.getLogger(__name__)


_kept: Final[TypeAdapter[Passed | Failed]] = TypeAdapter(
    Passed | Failed, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", hide_input_in_errors=True)
)


class KeptVerdicts:
    """The verdicts in the store."""

    def __init__(self, store: Store, requests: RequestPublisher) -> None:
        self._store = store
        self._requests = requests

    async def keep(self, command: BatchCreated, verdict: Passed | Failed) -> Passed | Failed:
        """Keep a verdict, unless it is small and plain; returns the one that counts, perhaps another process's.

        Raises:
            OSError: The store failed.
            NoKey: The batch is deleted.
        """
        if isinstance(verdict, Passed) and _is_plain(verdict) and verdict.total <= EXPRESS_LINES_MAX:
            return verdict
        batch_id = command.batch.id
        await self._requests.begin(batch_id, command.project)
        content = _kept.dump_json(verdict)
        if await self._store.create(verdict_key(batch_id), content):
            return verdict
        if (other := await self._read(batch_id)) is None:  # It is damaged.
            await self._store.write(verdict_key(batch_id), once(content))
        return other or verdict

    async def keep_accepted(self, command: BatchCreated, passed: Passed) -> None:
        """Keep a verdict of any size that the log has, unless one is kept.

        Raises:
            OSError: The store failed.
            NoKey: The batch is deleted.
        """
        await self._requests.begin(command.batch.id, command.project)
        await self._store.create(verdict_key(command.batch.id), _kept.dump_json(passed))

    async def of(self, batch_id: str) -> Passed | Failed | None:
        """The verdict that another attempt kept.

        Raises:
            OSError: The store failed.
        """
        try:
            return await self._read(batch_id)
        except (NotFound, Refused):
            # S3 refuses a missing key to an account that may not list; the input shows what else is wrong.
            return None

    async def _read(self, batch_id: str) -> Passed | Failed | None:
        """The verdict in the store; None if it is damaged."""
        try:
            return _kept.validate_json(await read_all(self._store.read(verdict_key(batch_id))))
        except ValidationError:
            log.exception("the verdict on the input of %s is damaged; it is checked again", batch_id)
            return None


def _is_plain(passed: Passed) -> bool:
    return len(passed.models) == 1 and not (passed.copies.count or passed.faulty)
