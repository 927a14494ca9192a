"""`tidemill dead`: what nothing could read, and back into its topic with what can be read by now."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.kafka import history
from tidemill.kafka.producer import Log
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.dead_letters import Letter, Mark
from tidemill.schemas.ports import Sender
from tidemill.terminal import printable

LETTERS_MAX: Final = 10_000
"""The newest letters that are held at one time."""
VALUE_BYTES_SHOWN: Final = 2_000

Say = Callable[[str], None]
"""Prints a line on stdout."""


class LetterError(Exception):
    """A letter cannot be had or not be sent again; the text says why."""


@dataclass
class DeadLetters:
    """The letters by their ids, and those that were sent again, with the time."""

    letters: dict[str, Letter] = field(default_factory=dict)
    requeued: dict[str, float] = field(default_factory=dict)
    unreadable: int = 0
    """Records of `tidemill.dead` that are no letters."""

    def add(self, found: Letter | Mark) -> None:
        """Take in the next one; a record that was buried twice is one letter."""
        if isinstance(found, Mark):
            self.requeued[found.id] = found.at
            return
        self.letters[found.id] = found
        if len(self.letters) > LETTERS_MAX:
            oldest = next(iter(self.letters))
            del self.letters[oldest]

    @property
    def waiting(self) -> list[Letter]:
        """Those that were not sent again, the oldest first."""
        return [letter for letter in self.letters.values() if letter.id not in self.requeued]


async def opened(where: Kafka) -> DeadLetters:
    """Read all letters.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    yard = DeadLetters()
    async with history.reading(where) as reader:
        async for record in reader.records(topics.DEAD.name):
            try:
                yard.add(dead_letters.read(record.headers, record.value, record.timestamp / 1000))
            except DecodeError:
                yard.unreadable += 1
    return yard


async def show_all(where: Kafka, say: Say, *, everything: bool) -> None:
    """List the letters that wait, or all of them.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    yard = await opened(where)
    for letter in yard.letters.values() if everything else yard.waiting:
        state = f"  sent again {_time(yard.requeued[letter.id])}" if letter.id in yard.requeued else ""
        say(f"{letter.id}  {_time(letter.at)}  {letter.stage}: {letter.reason}{state}")
    hidden = len(yard.letters) - len(yard.waiting)
    if hidden and not everything:
        say(f"({hidden} more were sent again; --all shows them)")
    if not yard.letters:
        say("There are no dead letters.")


async def show(where: Kafka, letter_id: str, say: Say, *, value_bytes: int = VALUE_BYTES_SHOWN) -> None:
    """Show one letter, with nothing in it that a terminal would obey.

    Raises:
        LogUnavailable: The broker does not answer.
        LetterError: There is none of that id.
    """
    yard = await opened(where)
    letter = _found(yard, letter_id)
    say(f"record     {letter.id}")
    say(f"buried     {_time(letter.at)} by {letter.stage}")
    say(f"reason     {letter.reason}")
    if letter.id in yard.requeued:
        say(f"sent again {_time(yard.requeued[letter.id])}")
    say(f"key        {'none' if letter.key is None else printable(letter.key)}")
    for name, content in letter.headers:
        say(f"header     {name} = {'null' if content is None else printable(content)}")
    if letter.cut_bytes is not None:
        say(f"value      {letter.cut_bytes} bytes, too large for a letter; it is at its place in the log")
    elif letter.value is None:
        say("value      none")
    else:
        say(f"value      {len(letter.value)} bytes")
        for line in letter.value[:value_bytes].split(b"\n"):
            say(f"  {printable(line)}")
        if len(letter.value) > value_bytes:
            say(f"  … {len(letter.value) - value_bytes} bytes more (--bytes)")


async def requeue(where: Kafka, letter_ids: Sequence[str] | None, say: Say, *, again: bool = False) -> int:
    """Send records to their topics again, each with its own key and headers.

    A letter that was sent again is marked, and is passed over from then on. A crash between the two sends it once
    more at the next call, which is harmless: whoever reads the topic takes a record twice as once.

    Args:
        where: The broker.
        letter_ids: Which; None is all that wait.
        say: Told of each.
        again: Whether those that are marked are sent once more.

    Returns:
        How many were sent.

    Raises:
        LogUnavailable: The broker does not answer.
        LetterError: There is none of an id, or it cannot be sent.
    """
    yard = await opened(where)
    chosen = yard.waiting if letter_ids is None else [_found(yard, name) for name in letter_ids]
    log = Log(where)
    try:
        await log.start()
        sent = 0
        for letter in chosen:
            if letter.id in yard.requeued and not again:
                say(f"{letter.id} was sent again {_time(yard.requeued[letter.id])} already")
            elif letter.cut_bytes is not None:
                _refuse(f"{letter.id} has a value of {letter.cut_bytes} bytes, which its letter does not hold",
                        say, alone=letter_ids is not None)  # fmt: skip
            else:
                await _send(log, letter)
                say(f"{letter.id} was sent to {letter.topic} again")
                sent += 1
        return sent
    finally:
        await log.stop()


async def _send(log: Sender, letter: Letter) -> None:
    # The client sends no record that has neither key nor value.
    key = letter.key if letter.value is not None else letter.key or b""
    await log.send(letter.topic, key, letter.value, headers=dead_letters.requeued(letter))
    await log.send(topics.DEAD.name, letter.id, None, headers=dead_letters.mark(letter.id))


def _refuse(text: str, say: Say, *, alone: bool) -> None:
    if alone:
        raise LetterError(text)
    say(text)


def _found(yard: DeadLetters, letter_id: str) -> Letter:
    if (letter := yard.letters.get(letter_id)) is None:
        raise LetterError(f"there is no dead letter {printable(letter_id)}")
    return letter


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
