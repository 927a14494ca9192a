"""The handling of a record: whatever it holds, its stage goes on.

1. A record that cannot be read is buried at once (`tidemill.dead`).
2. Where the log or the store is away, that says nothing against the record: the failure goes to the caller.
3. After any other failure what the try has left is undone, and the record is tried once more. Where it fails again
   it is buried, with the place that it failed at, and the batch that it names is told.

A process that ends in the middle of a record (for want of memory, say) is not counted: a record is too small to
end one, and a process that is killed for another reason may hold any record in hand.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.dead_letters import bury
from tidemill.schemas.bounds import TEXT_CHARS_MAX
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import RecordTooLarge, Sender

TRIES: Final = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Burial:
    """Why a record is a dead letter."""

    source: str
    """`topic/partition/offset`: the letter's id."""
    reason: str
    """In words that quote no user."""
    unreadable: bool
    """Whether it could not even be read."""


async def handled(
    sender: Sender,
    message: Any,
    work: Callable[[], Awaitable[None]],
    *,
    stage: str,
    undo: Callable[[], None] | None = None,
) -> Burial | None:
    """Handle a record, or bury it.

    Args:
        sender: The log.
        message: The record as Faust hands it over.
        work: Begins a try.
        stage: Whose record it is.
        undo: Takes back what a try that failed has left.

    Returns:
        Why it is buried; None where it is not.

    Raises:
        OSError: The log or the store is away.
        KafkaError: The log is away.
    """
    source = f"{message.topic}/{message.partition}/{message.offset}"
    unreadable = False
    for tries in range(1, TRIES + 1):
        try:
            await work()
        except TRANSIENT:
            raise
        except Exception as error:
            if undo is not None:
                undo()
            reason = told(error)
            if unreadable := isinstance(error, DecodeError):
                break
            log.warning("%s: %s, try %d of %d", source, reason, tries, TRIES, exc_info=error)
        else:
            return None
    await bury(sender, message, stage=stage, reason=Exception(reason))
    return Burial(source=source, reason=reason[:TEXT_CHARS_MAX], unreadable=unreadable)


def told(error: Exception) -> str:
    """An error in words that quote no user: its own where it is one of ours, else its kind and its place."""
    if isinstance(error, DecodeError | RecordTooLarge):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.name}:{place.lineno}"


def is_cancelled() -> bool:
    """Whether the task that runs was told to end; a `CancelledError` of its own making does not say so."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
