"""`tidemill dead`: lists dead letters, and requeues them once a fix can read them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.kafka import history
from tidemill.kafka.producer import Log
from tidemill.ops import OperatorError, Say
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.dead_letters import DeadLetter, RequeueMark
from tidemill.schemas.ports import Sender
from tidemill.terminal import local_time, printable, show_json

LETTERS_MAX: Final = 10_000
"""Newest letters to keep in memory."""
VALUE_BYTES_SHOWN: Final = 2_000


@dataclass
class DeadLetters:
    """The letters by id, and when each one was requeued (Unix seconds)."""

    letters: dict[str, DeadLetter] = field(default_factory=dict)
    requeued: dict[str, float] = field(default_factory=dict)
    unreadable: int = 0
    """Number of records in `tidemill.dead` that are not letters."""

    def add(self, found: DeadLetter | RequeueMark) -> None:
        """Add the next record of the topic; a record that was written twice is one letter."""
        if isinstance(found, RequeueMark):
            self.requeued[found.id] = found.at
            return
        self.letters[found.id] = found
        if len(self.letters) > LETTERS_MAX:
            oldest = next(iter(self.letters))
            del self.letters[oldest]

    @property
    def waiting(self) -> list[DeadLetter]:
        """Letters not requeued yet, the oldest first."""
        return [letter for letter in self.letters.values() if letter.id not in self.requeued]


async def read_all(kafka: Kafka) -> DeadLetters:
    """Read all dead letters.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    found = DeadLetters()
    async with history.reading(kafka) as reader:
        async for record in reader.records(topics.DEAD.name):
            try:
                found.add(dead_letters.decode(record.headers, record.value, record.timestamp / 1000))
            except DecodeError:
                found.unreadable += 1
    return found


async def show_all(kafka: Kafka, say: Say, *, requeued_too: bool, as_json: bool = False) -> None:
    """List the waiting letters; with `requeued_too` also the others.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    found = await read_all(kafka)
    letters = list(found.letters.values()) if requeued_too else found.waiting
    if as_json:
        for letter in letters:
            show_json(_record(letter, found))
        return
    for letter in letters:
        state = f"  requeued {local_time(found.requeued[letter.id])}" if letter.id in found.requeued else ""
        say(f"{letter.id}  {local_time(letter.at)}  {letter.stage}: {letter.reason}{state}")
    hidden = len(found.letters) - len(found.waiting)
    if hidden and not requeued_too:
        say(f"({hidden} more were requeued; --all shows them)")
    if not found.letters:
        say("No dead letters.")


def _record(letter: DeadLetter, found: DeadLetters) -> dict[str, Any]:
    """A letter as JSON, without its content."""
    return {
        "id": letter.id,
        "at": letter.at,
        "stage": letter.stage,
        "reason": letter.reason,
        "requeued_at": found.requeued.get(letter.id),
    }


async def show(
    kafka: Kafka, letter_id: str, say: Say, *, value_bytes: int = VALUE_BYTES_SHOWN, as_json: bool = False
) -> None:
    """Show one letter, with control characters escaped.

    Raises:
        LogUnavailable: The broker does not answer.
        OperatorError: No letter has this id.
    """
    found = await read_all(kafka)
    letter = _by_id(found, letter_id)
    if as_json:
        show_json(_record(letter, found) | _content(letter, value_bytes))
        return
    say(f"record     {letter.id}")
    say(f"written    {local_time(letter.at)} by {letter.stage}")
    say(f"reason     {letter.reason}")
    if letter.id in found.requeued:
        say(f"requeued   {local_time(found.requeued[letter.id])}")
    say(f"key        {'none' if letter.key is None else printable(letter.key)}")
    for name, content in letter.headers:
        say(f"header     {name} = {'null' if content is None else printable(content)}")
    if letter.cut_bytes is not None:
        say(f"value      {letter.cut_bytes} bytes, too large for a letter; the topic has it at this offset")
    elif letter.value is None:
        say("value      none")
    else:
        say(f"value      {len(letter.value)} bytes")
        for line in letter.value[:value_bytes].split(b"\n"):
            say(f"  {printable(line)}")
        if len(letter.value) > value_bytes:
            say(f"  … {len(letter.value) - value_bytes} more bytes (--bytes)")


def _content(letter: DeadLetter, value_bytes: int) -> dict[str, Any]:
    """The content of a letter as JSON; bytes that are not UTF-8 are escaped as in Python."""

    def text(content: bytes | None) -> str | None:
        return None if content is None else content.decode("utf-8", "backslashreplace")

    size = letter.cut_bytes if letter.value is None else len(letter.value)
    value = None if letter.value is None else text(letter.value[:value_bytes])
    headers = [[name, text(content)] for name, content in letter.headers]
    return {"key": text(letter.key), "headers": headers, "value": value, "value_bytes": size}


async def requeue(kafka: Kafka, letter_ids: Sequence[str] | None, say: Say, *, again: bool = False) -> int:
    """Send records to their topics again, each with its own key and headers; by default all that wait.

    A requeued letter is marked, and skipped from then on, unless `again` includes it. After a crash between the
    two steps the next call sends it again, which is harmless: the stages deduplicate records. Returns the number
    of letters sent.

    Raises:
        LogUnavailable: The broker does not answer.
        OperatorError: An id is unknown, or a letter cannot be sent.
    """
    found = await read_all(kafka)
    chosen = found.waiting if letter_ids is None else [_by_id(found, name) for name in letter_ids]
    log = Log(kafka)
    try:
        await log.start()
        sent = 0
        for letter in chosen:
            if letter.id in found.requeued and not again:
                say(f"{letter.id} was requeued before, at {local_time(found.requeued[letter.id])}")
            elif (text := _refusal(letter)) is not None:
                if letter_ids is not None:
                    raise OperatorError(text)
                say(text)
            else:
                await _send(log, letter)
                say(f"{letter.id} was sent to {letter.topic}")
                sent += 1
        return sent
    finally:
        await log.stop()


def _refusal(letter: DeadLetter) -> str | None:
    """Why a letter cannot be sent; None if it can."""
    if letter.cut_bytes is not None:
        return f"{letter.id} has a value of {letter.cut_bytes} bytes, which the letter does not hold"
    if not topics.takes_requeued(letter.topic):
        return f"{letter.id} stays: {topics.requeue_refusal(letter.topic)}"
    return None


async def _send(log: Sender, letter: DeadLetter) -> None:
    key, value, headers = dead_letters.requeued(letter)
    await log.send(letter.topic, key, value, headers=headers)
    await log.send(topics.DEAD.name, letter.id, None, headers=dead_letters.mark_headers(letter.id))


def _by_id(found: DeadLetters, letter_id: str) -> DeadLetter:
    if (letter := found.letters.get(letter_id)) is None:
        raise OperatorError(f"no dead letter {printable(letter_id)}")
    return letter
