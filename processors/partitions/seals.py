"""Records of requests, read, checked and opened where they are sealed; outcomes, sealed as their requests were."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tidemill.kafka.partitions.dead_letters import safe_reason
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.schemas import ids
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, Headers, RequestHead
from tidemill.schemas.ports import Outbox
from tidemill.sealing.records import opened_request, sealed_outcome
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import KeyUnavailable

KEY_SECONDS: Final = 5.0
"""Between two tries to get the key of results."""

_log = logging.getLogger(__name__)

Opened = tuple[RequestHead, list[bytes]]
"""One empty text where the line lies in the store, or where nobody wants the lines any more."""


@dataclass(frozen=True, slots=True)
class Unopened:
    """A record that cannot be opened at the moment, and why."""

    head: RequestHead
    why: str


async def opened(
    message: Any, ended: ClosedBatches, vault: Vault, waits: Callable[[str], str | None] = lambda _: None
) -> Opened | DecodeError | Unopened:
    """The lines of a record, or why it cannot be read: for good, or at the moment.

    Args:
        message: The record.
        ended: The batches that are over: nothing is read of these, since their keys may be destroyed.
        vault: Has the keys.
        waits: Why the records of a batch wait, where they do: then this one is not tried.
    """
    try:
        head = _checked(codec.request_head(message.headers or ()))
        if vault.is_erased(head.batch_id):
            ended.end(head.batch_id)
        if head.ref is not None or (head.seal is not None and head.batch_id in ended):
            return head, [b""]
        if (why := waits(head.batch_id)) is not None:
            return Unopened(head, why)
        try:
            return head, _lines(await opened_request(vault, head, message.value or b""))
        except KeyUnavailable as error:
            return Unopened(head, str(error))
    except NoKey as error:
        return DecodeError(str(error))
    except Exception as error:  # noqa: BLE001  whatever it holds, a second try would fail the same
        return DecodeError(safe_reason(error))


class SealedOutbox:
    """See `Outbox`."""

    def __init__(self, below: Outbox, vault: Vault) -> None:
        self._below = below
        self._vault = vault

    async def send(self, batch_id: str, value: bytes, headers: Headers) -> None:
        """See `Outbox`; what comes too late for a batch, which is deleted, goes nowhere."""
        while True:
            try:
                sealed = await sealed_outcome(self._vault, batch_id, value, headers)
            except NoKey:
                _log.warning("%s is deleted, and results of it come too late", batch_id)
            except OSError as error:
                _log.error("results of %s wait for their key: %s", batch_id, error)
                await asyncio.sleep(KEY_SECONDS)
                continue
            else:
                await self._below.send(batch_id, *sealed)
            return


def _lines(value: bytes) -> list[bytes]:
    lines = value.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DecodeError("it has no line")
    return lines


def _checked(head: RequestHead) -> RequestHead:
    """A head that may be acted upon: its batch id becomes part of a key of the store, its endpoint of a URL."""
    if not ids.is_batch_id(head.batch_id):
        raise DecodeError("the batch id has not the form of one")
    if head.url not in ENDPOINTS:
        raise DecodeError("the endpoint is not one of those known")
    if head.first < 0:
        raise DecodeError("the first line's index is negative")
    return head
