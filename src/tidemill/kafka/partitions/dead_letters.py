"""Handles a record of a stage, with a second attempt; a record that fails twice becomes a dead letter.

1. A record that cannot be decoded becomes a dead letter at once.
2. A failure of the log or of the store proves nothing against the record: it goes to the caller.
3. After any other failure the stage undoes the attempt and tries once more. If that fails too, the record becomes
   a dead letter, which says where the failure was.

An attempt that a crash of the process cut short does not count: a record is too small to exhaust the memory of a
process, and a process killed for another reason may be handling any record.
"""

import functools
import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from tidemill import metrics
from tidemill.kafka.connection import TRANSIENT
from tidemill.retrying import retry
from tidemill.schemas.bounds import TEXT_CHARS_MAX
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.dead_letters import DeadLetter
from tidemill.schemas.ports import RecordTooLarge, Sender

ATTEMPTS_MAX: Final = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FailedRecord:
    """A record that no attempt could handle, and the reason."""

    source: str
    """The letter's id: `topic/partition/offset`."""
    reason: str
    """The error, without text of users."""
    unreadable: bool
    """Whether the record could not be decoded."""


async def handle_record(
    sender: Sender,
    message: Any,
    work: Callable[[], Awaitable[None]],
    *,
    stage: str,
    undo: Callable[[], None] | None = None,
) -> FailedRecord | None:
    """Handle a record by `work`, or send it to `tidemill.dead`; `undo` undoes a failed attempt.

    Returns:
        The failed record; None if it was handled.

    Raises:
        OSError: The log or the store is unavailable.
        KafkaError: The log is unavailable.
    """
    source = source_of(message)
    unreadable = False
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            await work()
        except TRANSIENT:
            raise
        except Exception as error:
            if undo is not None:
                undo()
            reason = safe_reason(error)
            if unreadable := isinstance(error, DecodeError):
                break
            log.warning("%s: %s, attempt %d of %d", source, reason, attempt, ATTEMPTS_MAX, exc_info=error)
        else:
            return None
    await send_dead_letter(sender, message, stage=stage, reason=reason)
    return FailedRecord(source=source, reason=reason[:TEXT_CHARS_MAX], unreadable=unreadable)


async def send_dead_letter(
    sender: Sender, message: Any, *, stage: str, reason: str, project: str | None = None
) -> None:
    """Append a record to `tidemill.dead`, and retry until the log accepts it.

    The retries have no bound: while the log is unavailable, the stage has nothing else to do. The reason has no
    text of users, since it also goes into the process's own log. The project is that of a producer's credential.
    """
    source, value = source_of(message), message.value
    headers = dead_letters.headers(
        source, message.headers or (), key=message.key, stage=stage, reason=reason, project=project
    )
    if value is not None and len(value) > dead_letters.VALUE_BYTES_MAX:
        headers = [*headers, (dead_letters.CUT, b"%d" % len(value))]
        value = None
    send = functools.partial(sender.send, topics.DEAD.name, source, value, headers=headers)
    await retry("sending a dead letter", send)
    metrics.DEAD_LETTERS.inc()
    log.warning("%s could not handle %s: %s", stage, source, reason)


async def send_again(sender: Sender, letter: DeadLetter) -> None:
    """Send the record of a letter to its topic again, then mark the letter; raises `OSError` as `send` does."""
    # The client refuses a record with neither key nor value.
    key = letter.key if letter.value is not None else letter.key or b""
    await sender.send(letter.topic, key, letter.value, headers=dead_letters.requeue_headers(letter))
    await sender.send(topics.DEAD.name, letter.id, None, headers=dead_letters.mark_headers(letter.id))


def safe_reason(error: Exception) -> str:
    """An error without text of users: the message of our own errors, else the kind and place of the error."""
    if isinstance(error, DecodeError | RecordTooLarge):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.name}:{place.lineno}"


def source_of(message: Any) -> str:
    """The id of a record's letter: `topic/partition/offset`."""
    return f"{message.topic}/{message.partition}/{message.offset}"
