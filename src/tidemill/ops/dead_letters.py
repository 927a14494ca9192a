"""`tidemill dead`: lists dead letters, and requeues them once a fix can read them."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.kafka import history
from tidemill.kafka.history import Reader
from tidemill.kafka.partitions.dead_letters import send_again
from tidemill.kafka.producer import Log
from tidemill.ops import OperatorError, Say
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.dead_letters import DeadLetter, RequeueMark
from tidemill.schemas.ports import Edge
from tidemill.terminal import local_time, printable, show_json
from tidemill.wording import counted

VALUE_BYTES_SHOWN: Final = 2_000


@dataclass
class DeadLetters:
    """The ids of all letters, and when each one was requeued (Unix seconds)."""

    ids: set[str] = field(default_factory=set)
    requeued: dict[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> set[str]:
        """The ids of letters not requeued yet."""
        return self.ids - self.requeued.keys()


async def known(reader: Reader, since: Edge = history.FIRST) -> DeadLetters:
    """Read which letters there are, from a place of the topic on.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    found = DeadLetters()
    async for one in _all(reader, since):
        if isinstance(one, RequeueMark):
            found.requeued[one.id] = one.at
        else:
            found.ids.add(one.id)
    return found


async def picked(reader: Reader, ids: Iterable[str]) -> AsyncGenerator[DeadLetter, None]:
    """The letters with these ids, the oldest first; one at a time, since each may have a MiB.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    left = set(ids)
    async with aclosing(_all(reader)) as found:
        while left and (one := await anext(found, None)) is not None:
            # A record that was written twice is one letter.
            if isinstance(one, DeadLetter) and one.id in left:
                left.remove(one.id)
                yield one


async def _all(reader: Reader, since: Edge = history.FIRST) -> AsyncGenerator[DeadLetter | RequeueMark, None]:
    async with aclosing(reader.records(topics.DEAD.name, since)) as records:
        async for record in records:
            with suppress(DecodeError):
                yield dead_letters.decode(record.headers, record.value, record.timestamp / 1000)


async def show_all(kafka: Kafka, say: Say, *, requeued_too: bool, as_json: bool = False) -> None:
    """List the waiting letters; with `requeued_too` also the others.

    Raises:
        LogUnavailable: The broker does not answer.
    """
    async with history.reading(kafka) as reader:
        found = await known(reader)
        async for letter in picked(reader, found.ids if requeued_too else found.waiting):
            at = found.requeued.get(letter.id)
            if as_json:
                show_json(_record(letter, at))
            else:
                state = "" if at is None else f"  requeued {local_time(at)}"
                say(
                    f"{letter.id}  {local_time(letter.at)}{_whose(letter)}  {letter.stage}: {letter.reason}{state}"
                )
    if as_json:
        return
    hidden = len(found.ids) - len(found.waiting)
    if hidden and not requeued_too:
        say(f"({hidden} more were requeued; --all shows them)")
    if not found.ids:
        say("No dead letters.")


def _whose(letter: DeadLetter) -> str:
    """The stream and project of a producer's record, as far as they are known."""
    named = (("stream", letter.stream), ("project", letter.project))
    return "".join(f"  {what} {printable(name)}" for what, name in named if name is not None)


def _record(letter: DeadLetter, requeued_at: float | None) -> dict[str, Any]:
    """A letter as JSON, without its content."""
    return {
        "id": letter.id,
        "at": letter.at,
        "stage": letter.stage,
        "reason": letter.reason,
        "stream": letter.stream,
        "project": letter.project,
        "requeued_at": requeued_at,
    }


async def show(
    kafka: Kafka, letter_id: str, say: Say, *, value_bytes: int = VALUE_BYTES_SHOWN, as_json: bool = False
) -> None:
    """Show one letter, with control characters escaped.

    Raises:
        LogUnavailable: The broker does not answer.
        OperatorError: No letter has this id.
    """
    async with history.reading(kafka) as reader:
        requeued_at = (await _chosen(reader, [letter_id])).requeued.get(letter_id)
        found = [one async for one in picked(reader, [letter_id])]
    if not found:
        raise OperatorError(f"the dead letter {printable(letter_id)} has just expired")
    letter = found[0]
    if as_json:
        show_json(_record(letter, requeued_at) | _content(letter, value_bytes))
        return
    say(f"record     {letter.id}")
    say(f"written    {local_time(letter.at)} by {letter.stage}")
    say(f"reason     {letter.reason}")
    if requeued_at is not None:
        say(f"requeued   {local_time(requeued_at)}")
    say(f"key        {'none' if letter.key is None else printable(letter.key)}")
    for name, content in letter.headers:
        say(f"header     {name} = {'null' if content is None else printable(content)}")
    if letter.cut_bytes is not None:
        size = counted(letter.cut_bytes, "byte")
        say(f"value      {size}, too large for a letter; the topic has it at this offset")
    elif letter.value is None:
        say("value      none")
    else:
        say(f"value      {counted(len(letter.value), 'byte')}")
        for line in letter.value[:value_bytes].split(b"\n"):
            say(f"  {printable(line)}")
        if len(letter.value) > value_bytes:
            say(f"  … {counted(len(letter.value) - value_bytes, 'more byte')} (--bytes)")


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
    log = Log(kafka)
    try:
        await log.start()
        async with history.reading(kafka) as reader:
            found = await _chosen(reader, letter_ids or ())
            sent = 0
            async for letter in picked(reader, found.waiting if letter_ids is None else letter_ids):
                if letter.id in found.requeued and not again:
                    say(f"{letter.id} was requeued before, at {local_time(found.requeued[letter.id])}")
                elif (text := _refusal(letter)) is not None:
                    if letter_ids is not None:
                        raise OperatorError(text)
                    say(text)
                else:
                    await send_again(log, letter)
                    say(f"{letter.id} was sent to {letter.topic}")
                    sent += 1
            return sent
    finally:
        await log.stop()


def _refusal(letter: DeadLetter) -> str | None:
    """Why a letter cannot be sent; None if it can."""
    if letter.cut_bytes is not None:
        return f"{letter.id} has a value of {counted(letter.cut_bytes, 'byte')}, which the letter does not hold"
    if not topics.takes_requeued(letter.topic):
        return f"{letter.id} stays: {topics.requeue_refusal(letter.topic)}"
    return None


async def _chosen(reader: Reader, letter_ids: Iterable[str]) -> DeadLetters:
    """Read which letters there are, and check that these are among them."""
    found = await known(reader)
    for letter_id in letter_ids:
        if letter_id not in found.ids:
            raise OperatorError(f"no dead letter {printable(letter_id)}")
    return found
