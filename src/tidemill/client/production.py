"""`tidemill produce`: sends the lines of a file to Kafka, as a stream that becomes a batch."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

from tidemill.client.errors import Exit, Refused, Unreachable, UsageError
from tidemill.client.http.client import Client
from tidemill.client.keys import TOKENS
from tidemill.client.progress import Display, display
from tidemill.client.runs.paths import size_of
from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Producer, Sent, producer
from tidemill.schemas import ids
from tidemill.schemas.log import intake, topics
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.ports import Monotonic, RecordTooLarge
from tidemill.terminal import Console, say

RECORD_BYTES_MAX: Final = 64 * 1024
"""Size of a record of several lines; a single line may be larger."""
UNACKED_MAX: Final = 64
"""Records in flight: sent and not acknowledged yet."""
DELIVERY_SECONDS_MAX: Final = 30.0
LINGER_MS: Final = 5
POLLS_MAX: Final = 40
POLLS_OPEN_MAX: Final = 4
"""Polls for the batch; fewer if the stream was open before."""
POLL_SECONDS: Final = 0.25
RECENT_MAX: Final = 100
"""Newest batches to search for an open stream."""


async def produce(
    console: Console, client: Client, kafka: Kafka, source: Path, name: str, *, ends: bool, output: str
) -> Exit:
    """Send a JSONL file as a stream, and print the id of its batch on stdout; everything else goes to stderr.

    `ends` says whether the stream ends with the file; `output` is `one` output file or `numbered` ones.
    """
    log = Intake(kafka)
    before = await _open(client, name)
    try:
        with display(console) as progress:
            await _send(log, Token(client, name), source, progress, ends=ends, output=output)
    except LogUnavailable as error:
        raise Unreachable(f"Kafka at {kafka} does not accept the lines ({error})") from error
    except RecordTooLarge as error:
        raise UsageError(f"a line of {source} is too large: {error}") from error
    if log.first is None:
        raise UsageError(f"{source} has no lines")
    batch_id = await _found(client, ids.stream_batch_id(*log.first), before)
    if batch_id is None:
        console.print("tidemill: Kafka has the lines, but the service shows no batch yet: see `tidemill list`,")
        console.print("and `tidemill dead list` for records that ingest could not read.")
        return Exit.UNREACHABLE
    say(batch_id)
    console.print(f"To follow it: `tidemill watch {batch_id}`; -o out.jsonl downloads the results.")
    return Exit.OK


async def _send(
    log: "Intake", token: "Token", source: Path, progress: Display, *, ends: bool, output: str
) -> None:
    progress.transfer("produce", size_of(source))
    more = [(intake.OUTPUT, output.encode())]
    with source.open("rb") as file:
        async with log:
            values = packed(file)
            value = next(values, None)
            while value is not None:
                following = next(values, None)
                end = [(intake.END, b"true")] if ends and following is None else []
                await log.send(token.stream, value, [await token.header(), *more, *end])
                progress.moved(len(value) + 1)
                value, more = following, []
            await log.flush()


class Intake:
    """Appends to `tidemill.intake`, in order; an asynchronous context manager.

    Every method may raise `LogUnavailable`.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._producer = Producer(lambda: producer(kafka, compression="zstd", linger_ms=LINGER_MS))
        self._unacked: deque[Sent] = deque()
        self.first: tuple[int, int] | None = None
        """Partition and offset of the first record, once acknowledged."""

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def send(self, name: str, value: bytes, headers: Headers) -> None:
        """Append a record to a stream; waits while `UNACKED_MAX` records are in flight.

        Raises:
            RecordTooLarge: It exceeds the size of a record.
        """
        while len(self._unacked) >= UNACKED_MAX:
            await self._oldest()
        self._unacked.append(await self._producer.enqueue(topics.INTAKE.name, name, value, headers=headers))

    async def flush(self) -> None:
        """Wait until the broker has acknowledged every record."""
        while self._unacked:
            await self._oldest()

    async def _oldest(self) -> None:
        sent = self._unacked.popleft()
        offset = await self._producer.delivered(sent, DELIVERY_SECONDS_MAX)
        if self.first is None:
            self.first = sent.future.result().partition, offset


class Token:
    """A producer's token for one stream, renewed after half of its lifetime."""

    def __init__(self, client: Client, stream: str, monotonic: Monotonic = time.monotonic) -> None:
        self._client = client
        self.stream = stream
        self._monotonic = monotonic
        self._header = (intake.AUTHORIZATION, b"")
        self._renew_at = 0.0

    async def header(self) -> tuple[str, bytes]:
        """The header of the next record.

        Raises:
            Refused: The key lacks the role `write`.
        """
        now = self._monotonic()
        if now >= self._renew_at:
            issued = await self._client.send_retrying("POST", TOKENS, json={"stream": self.stream})
            self._header = (intake.AUTHORIZATION, f"Bearer {issued['token']}".encode())
            self._renew_at = now + (issued["expires_at"] - issued["created_at"]) / 2
        return self._header


def packed(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, grouped into records."""
    held: list[bytes] = []
    size = 0
    for line in file:
        if not (text := line.strip(b" \t\r\n")):
            continue
        if held and size + len(text) > RECORD_BYTES_MAX:
            yield b"\n".join(held)
            held, size = [], 0
        held.append(text)
        size += len(text) + 1
    if held:
        yield b"\n".join(held)


async def _open(client: Client, name: str) -> str | None:
    """The batch of a stream that is already open, among the newest batches."""
    async for batch in client.batches(limit=RECENT_MAX):
        if batch.tidemill.stream == name and not batch.status.is_terminal:
            return batch.id
    return None


async def _found(client: Client, derived: str, before: str | None) -> str | None:
    """The batch of the lines: the one that the first record opened, else the one that was open before."""
    for _ in range(POLLS_MAX if before is None else POLLS_OPEN_MAX):
        try:
            return (await client.batch(derived)).id
        except Refused as error:
            if error.status != 404:  # noqa: PLR2004 - the service does not show it yet
                raise
        await asyncio.sleep(POLL_SECONDS)
    return before
