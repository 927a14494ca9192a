"""Decodes, checks and decrypts records of requests, and encrypts results with the key of their batch."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from tidemill.kafka.partitions.dead_letters import safe_reason
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.schemas import ids
from tidemill.schemas.endpoints import is_path
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, Headers, RequestHead
from tidemill.schemas.ports import Outbox
from tidemill.sealing.records import open_request, seal_outcome
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import KeyUnavailable

KEY_SECONDS: Final = 5.0
"""Pause between two attempts to get the key for results."""

_log = logging.getLogger(__name__)

OpenedRecord = tuple[RequestHead, list[bytes]]
"""Head and lines; one empty text if the line is in the store, or the batch is closed."""


@dataclass(frozen=True, slots=True)
class LockedRecord:
    """A record whose key is not in memory, or is unavailable, and why."""

    head: RequestHead
    why: str = ""


async def open_record(
    message: Any,
    closed: ClosedBatches,
    vault: Vault,
    is_held: Callable[[str], bool] = lambda _: False,
    *,
    at_once: bool = False,
) -> OpenedRecord | LockedRecord | DecodeError:
    """Open a record of requests; returns a `DecodeError` if it can never be read.

    Args:
        message: The record.
        closed: Batches whose lines are not decrypted: their keys may be destroyed.
        vault: Has the keys.
        is_held: Whether earlier records of a batch are held: if so, this one stays locked, too.
        at_once: Leave it locked rather than wait for its key.
    """
    try:
        head = _checked(codec.request_head(message.headers or ()))
        if vault.is_erased(head.batch_id):
            closed.close(head.batch_id)
        if head.ref is not None or (head.seal is not None and head.batch_id in closed):
            return replace(head, indices=None), [b""]
        if is_held(head.batch_id) or (
            at_once and head.seal is not None and not vault.is_at_hand(head.batch_id, head.seal.key_id)
        ):
            return LockedRecord(head)
        try:
            return head, _lines(head, await open_request(vault, head, message.value or b""))
        except KeyUnavailable as error:
            return LockedRecord(head, str(error))
    except NoKey as error:
        return DecodeError(str(error))
    except Exception as error:  # noqa: BLE001  a second attempt would fail in the same way
        return DecodeError(safe_reason(error))


class SealedOutbox:
    """An `Outbox` that encrypts results; it discards those of deleted batches.

    It also discards those of batches that are over and whose keys are unavailable: they may be destroyed.
    """

    def __init__(self, outbox: Outbox, vault: Vault, closed: ClosedBatches) -> None:
        self._outbox = outbox
        self._vault = vault
        self._closed = closed

    async def send(self, batch_id: str, value: bytes, headers: Headers) -> None:
        """See `Outbox`."""
        while True:
            try:
                sealed = await seal_outcome(self._vault, batch_id, value, headers)
            except NoKey:
                _log.warning("results of %s are discarded, since the batch is deleted", batch_id)
            except OSError as error:
                # The results of a cancelled batch count for a grace.
                if batch_id in self._closed and not self._closed.grace(batch_id):
                    _log.warning("results of %s are discarded, since the batch is over: %s", batch_id, error)
                    return
                _log.error("results of %s wait for their key: %s", batch_id, error)
                await asyncio.sleep(KEY_SECONDS)
                continue
            else:
                await self._outbox.send(batch_id, *sealed)
            return


def _lines(head: RequestHead, value: bytes) -> list[bytes]:
    lines = value.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DecodeError("the record has no lines")
    head.places(len(lines))
    return lines


def _checked(head: RequestHead) -> RequestHead:
    """Check the parts of a store key (the batch id) and of a URL (the endpoint)."""
    if not ids.is_batch_id(head.batch_id):
        raise DecodeError("the batch id is malformed")
    if not is_path(head.url):
        raise DecodeError("the endpoint is malformed")
    if head.first < 0:
        raise DecodeError("the index of the first line is negative")
    return head
