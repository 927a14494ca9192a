"""`tidemill produce`: sends the lines of a file to Kafka, as a stream that becomes a batch.

Its records are numbered (`tidemill-seq`), and ingest drops one whose number its batch has. The first number of a
file is in the user's state directory from before the first record until the service shows the batch, so the same
command goes on after a failure. Numbers begin at the time in milliseconds, so those of the next file are higher,
also if another machine sends it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from tidemill.client.errors import Exit, Refused, Unreachable, UsageError
from tidemill.client.files import input_lines, sha256_of
from tidemill.client.http.client import NEWEST_MAX, Client
from tidemill.client.keys import TOKENS
from tidemill.client.progress import Display, display
from tidemill.client.runs import produced
from tidemill.client.runs.job import readable
from tidemill.client.runs.journal import locked_folder
from tidemill.client.runs.paths import size_of
from tidemill.client.runs.plan import FAULTS_MAX
from tidemill.client.runs.produced import Produced
from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Producer, Sent, producer
from tidemill.schemas import ids
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA
from tidemill.schemas.bounds import RECORD_BYTES_MAX as RECORD_BYTES_HIGHEST
from tidemill.schemas.log import intake, topics
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.ports import Monotonic
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.terminal import Console, say
from tidemill.wording import counted

LINE_BYTES_MAX: Final = RECORD_BYTES_HIGHEST - RECORD_BYTES_EXTRA
"""A longer line fits into no record."""
RECORD_BYTES_MAX: Final = 64 * 1024
"""Size of a record of several lines; a single line may be larger."""
RECORD_LINES_MAX: Final = 1_000
"""Ingest rejects a record with more lines that are too short to be requests."""
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
STOPPED: Final = frozenset({Status.CANCELLING, Status.CANCELLED})
"""Who cancels a batch wants its lines elsewhere, and ingest discards those that follow."""


class _Input(NamedTuple):
    """A file whose lines all fit into records."""

    path: Path
    name: object
    """What messages call it."""
    sha256: str
    counts: list[int]
    """The number of lines of each record."""

    def lines(self, records: int | None = None) -> int:
        """The lines of its first records, by default of all."""
        return sum(self.counts[:records])


class _Shown(NamedTuple):
    """What the service shows of a stream."""

    opened: Batch | None
    """The batch that lines would go to."""
    batch: Batch | None
    """The newest batch that has records of the file, and goes on or has ended by itself."""
    is_cancelled: bool
    """Whether the newest batch was cancelled: ingest may discard further lines until the stream ends."""

    @property
    def sequence(self) -> int:
        """The highest number of a record that `batch` has; 0 if it has none."""
        return 0 if self.batch is None else self.batch.tidemill.sequence or 0


class _Start(NamedTuple):
    """Where a command begins to send."""

    begun: Produced
    skipped: int = 0
    """Records that an earlier try has brought into `batch`."""
    batch: Batch | None = None
    opened: str | None = None
    """The batch of the stream that is open already."""
    is_cancelled: bool = False
    """See `_Shown`."""

    @property
    def is_open(self) -> bool:
        """Whether `batch` is the open one."""
        return self.batch is not None and self.batch.id == self.opened


async def produce(
    console: Console, client: Client, kafka: Kafka, source: Path, name: str, *, ends: bool, output: str
) -> Exit:
    """Send a JSONL file as a stream, and print the id of its batch on stdout; everything else goes to stderr.

    `ends` says whether the stream ends with the file; `output` is `one` output file or `numbered` ones.

    Raises:
        UsageError: No line was sent: the file has none, or too long ones, another command sends to the stream, or
            the note of an earlier try is damaged.
        Unreachable: Kafka or the service does not answer; the same command goes on.
        Refused: The service gives no token.
    """
    stream = f"produce {client.base_url} {name}"
    with readable(source) as (path, shown), locked_folder(stream, f"`tidemill produce` to {name}") as folder:
        file = await asyncio.to_thread(_checked, path, source if path == source else shown)
        note = folder / "produced.json"
        start = await _start(console, client, name, file, note)
        if start.batch is not None:
            _say_known(console, file, start, start.batch)
        log = Intake(kafka)
        # An end without lines would end the batch of another producer if that of the file is sealed.
        if start.skipped < len(file.counts) or (ends and start.is_open):
            with _reporting(console, kafka, log, file, start), display(console) as progress:
                await _send(log, Token(client, name), file, start, progress, note=note, ends=ends, output=output)
        batch_id = start.batch.id if start.batch is not None else None
        if start.skipped < len(file.counts) and log.first is not None:
            batch_id = await _found(client, ids.stream_batch_id(*log.first), start.opened)
        if batch_id is not None:
            note.unlink()
    if batch_id is None:
        console.print("tidemill: Kafka has the lines, but the service shows no batch yet: see `tidemill list`,")
        console.print("and `tidemill dead list` for records that ingest could not read. The same command goes on.")
        return Exit.UNREACHABLE
    say(batch_id)
    console.print(f"To follow it: `tidemill watch {batch_id}`; -o out.jsonl downloads the results.")
    return Exit.OK


def _checked(path: Path, name: object) -> _Input:
    """Read a file once, before any of it is sent.

    Raises:
        UsageError: It has no lines, or too long ones; the text names the first ones.
    """
    long = (line.number for line in input_lines(path, line_bytes_max=LINE_BYTES_MAX) if line.data is None)
    if faults := [f"line {n}: it is longer than {LINE_BYTES_MAX:,} bytes" for n in islice(long, FAULTS_MAX)]:
        raise UsageError("\n  ".join((f"{name} has faulty lines; no line was sent.", *faults)))
    counts = [len(lines) for lines in packed(path)]
    if not counts:
        raise UsageError(f"{name} has no lines")
    return _Input(path, name, sha256_of(path), counts)


async def _start(console: Console, client: Client, name: str, file: _Input, note: Path) -> _Start:
    """Where to begin; the file is in the `note` then."""
    begun = produced.read(note)
    if begun is not None and begun.sha256 != file.sha256:
        begun = None
    numbers = range(0) if begun is None else range(begun.first, begun.first + len(file.counts))
    shown = await _shown(client, name, numbers)
    if begun is not None and begun.may_have_ended and shown.sequence < numbers[-1]:
        console.print(
            "An earlier try may have ended the stream: waiting until the service shows what Kafka has of it."
        )
        shown = await _settled(client, name, numbers, shown)
    highest = 0 if shown.opened is None else shown.opened.tidemill.sequence or 0
    opened = None if shown.opened is None else shown.opened.id
    if begun is None or highest >= numbers.stop:
        begun = Produced(file.sha256, max(int(time.time() * 1000), highest + 1))
        produced.save(note, begun)
        return _Start(begun, opened=opened, is_cancelled=shown.is_cancelled)
    known = 0 if shown.batch is None else shown.sequence - begun.first + 1
    return _Start(begun, known, shown.batch, opened, shown.is_cancelled)


async def _settled(client: Client, name: str, numbers: range, shown: _Shown) -> _Shown:
    """Wait until the service shows the last record of a file, or no further one in `POLLS_MAX` polls.

    Ingest drops a record that is sent again only until the stream ends; after that, it opens another batch.
    """
    idle = 0
    while shown.sequence < numbers[-1] and idle < POLLS_MAX:
        await asyncio.sleep(POLL_SECONDS)
        newer = await _shown(client, name, numbers)
        idle = 0 if newer.sequence > shown.sequence else idle + 1
        shown = newer
    return shown


async def _shown(client: Client, name: str, numbers: range) -> _Shown:
    """Find the batches of a stream; `numbers` are those of the file's records, none if it was not begun."""
    newest = opened = batch = None
    async for found in client.batches(limit=NEWEST_MAX if numbers else RECENT_MAX):
        if found.tidemill.stream != name:
            continue
        newest = newest or found
        if found.status in STOPPED:
            continue
        if opened is None and found.tidemill.open and not found.status.is_terminal:
            opened = found
        if found.tidemill.sequence in numbers:
            batch = found
            break
    return _Shown(opened, batch, newest is not None and newest.status in STOPPED)


def _say_known(console: Console, file: _Input, start: _Start, batch: Batch) -> None:
    lines = counted(file.lines(start.skipped), "line")
    is_rest = start.skipped < len(file.counts) and not start.is_open
    rest = "; the others go to another batch, since that one is sealed" if is_rest else ""
    console.print(f"{batch.id} has {lines} of {file.lines():,} of {file.name} already{rest}.")


@contextmanager
def _reporting(console: Console, kafka: Kafka, log: "Intake", file: _Input, start: _Start) -> Iterator[None]:
    """Say after a failure or Ctrl-C how many lines are in which batch."""
    try:
        yield
    except BaseException as error:
        if log.first is not None:
            sent = counted(file.lines(start.skipped + log.delivered), "line")
            batch_id = start.opened or ids.stream_batch_id(*log.first)
            console.print(f"tidemill: Kafka has {sent} of {file.lines():,} of {file.name}, in {batch_id};")
            console.print("the same command goes on after them.")
        if isinstance(error, LogUnavailable):
            raise Unreachable(f"Kafka at {kafka} does not accept the lines ({error})") from error
        raise


async def _send(
    log: "Intake",
    token: "Token",
    file: _Input,
    start: _Start,
    progress: Display,
    *,
    note: Path,
    ends: bool,
    output: str,
) -> None:
    """Send the records that no earlier try has sent, and wait until Kafka has them.

    An end goes into the `note` first.
    """
    progress.transfer("produce", size_of(file.path))
    more = [(intake.OUTPUT, output.encode())]
    may_have_ended = msgspec.structs.replace(start.begun, may_have_ended=True)
    last = len(file.counts) - 1
    async with log:
        if start.is_cancelled and start.skipped <= last:
            produced.save(note, may_have_ended)
            await log.end(token.stream, [await token.header()])
        for index, lines in enumerate(packed(file.path)):
            value = b"\n".join(lines)
            if index >= start.skipped:
                headers = [(intake.SEQ, b"%d" % (start.begun.first + index)), *more]
                if ends and index == last:
                    # With all others in Kafka, only this record's fate can be unknown after a failure.
                    await log.flush()
                    produced.save(note, may_have_ended)
                    headers.append((intake.END, b"true"))
                await log.send(token.stream, value, [await token.header(), *headers])
                more = []
            progress.moved(len(value) + 1)
        if start.skipped > last and ends:
            await log.end(token.stream, [await token.header()])
        await log.flush()


class Intake:
    """Appends to `tidemill.intake`, in order; an asynchronous context manager.

    Every method may raise `LogUnavailable`.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._producer = Producer(lambda: producer(kafka, compression="zstd", linger_ms=LINGER_MS))
        self._unacked: deque[Sent] = deque()
        self.delivered = 0
        """Records that are acknowledged, and all before them."""
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

    async def end(self, name: str, headers: Headers) -> None:
        """End a stream by a record without lines, and wait for it; it does not count as delivered."""
        headers = [*headers, (intake.END, b"true")]
        sent = await self._producer.enqueue(topics.INTAKE.name, name, b"", headers=headers)
        await self._producer.delivered(sent, DELIVERY_SECONDS_MAX)

    async def flush(self) -> None:
        """Wait until the broker has acknowledged every record."""
        while self._unacked:
            await self._oldest()

    async def _oldest(self) -> None:
        sent = self._unacked.popleft()
        offset = await self._producer.delivered(sent, DELIVERY_SECONDS_MAX)
        self.delivered += 1
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


def packed(source: Path) -> Iterator[list[bytes]]:
    """The lines of a file, grouped into records.

    Raises:
        UsageError: A line fits into none.
    """
    held: list[bytes] = []
    size = 0
    for line in input_lines(source, line_bytes_max=LINE_BYTES_MAX):
        if line.data is None:
            raise UsageError(f"line {line.number} is longer than {LINE_BYTES_MAX:,} bytes")
        if held and (size + len(line.data) > RECORD_BYTES_MAX or len(held) >= RECORD_LINES_MAX):
            yield held
            held, size = [], 0
        held.append(line.data)
        size += len(line.data) + 1
    if held:
        yield held


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
