"""`tidemill produce`: sends the lines of a file to Kafka, as a stream that becomes a batch."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from tidemill.client.errors import Exit, Refused
from tidemill.client.http.client import Client
from tidemill.client.kafka import Intake
from tidemill.client.keys import TOKENS
from tidemill.client.progress import display
from tidemill.client.runs.paths import size_of
from tidemill.client.target import Target
from tidemill.configuration.security import Kafka
from tidemill.schemas import ids
from tidemill.schemas.log import intake
from tidemill.schemas.ports import Monotonic
from tidemill.terminal import Console, say

RECORD_BYTES_MAX: Final = 64 * 1024
"""Size of a record of several lines; a single line may be larger."""
POLLS_MAX: Final = 40
POLLS_OPEN_MAX: Final = 4
"""Polls for the batch; fewer if the stream was open before."""
POLL_SECONDS: Final = 0.25
RECENT_MAX: Final = 100
"""Newest batches to search for an open stream."""


async def produce(
    console: Console, target: Target, kafka: Kafka, source: Path, name: str, *, ends: bool, output: str
) -> Exit:
    """Send a file as a stream, and print the id of its batch on stdout.

    Args:
        console: Prints everything but the id.
        target: The service, which issues the producer's token.
        kafka: The broker.
        source: The file, JSONL.
        name: Name of the stream.
        ends: Whether the stream ends with the file.
        output: `one` output file or `numbered` ones.
    """
    size = size_of(source)
    async with Client(target.base_url, target.api_key) as client:
        before = await _open(client, name)
        token = Token(client, name)
        with source.open("rb") as file, display(console) as progress:
            progress.transfer("produce", size)
            async with Intake(kafka) as producer:
                held, more = None, [(intake.OUTPUT, output.encode())]
                for value in packed(file):
                    if held is not None:
                        await producer.send(name, held, [await token.header(), *more])
                        progress.moved(len(held) + 1)
                        more = []
                    held = value
                if held is not None:
                    end = [(intake.END, b"true")] if ends else []
                    await producer.send(name, held, [await token.header(), *more, *end])
                    progress.moved(len(held) + 1)
                await producer.flush()
    if producer.first is None:
        console.print(f"tidemill: {source} has no lines", style="red")
        return Exit.USAGE
    async with Client(target.base_url, target.api_key) as client:
        batch_id = await _found(client, ids.stream_batch_id(*producer.first), before)
    if batch_id is None:
        console.print("tidemill: Kafka has the lines, but the service shows no batch yet: see `tidemill list`,")
        console.print("and `tidemill dead list` for records that ingest could not read.")
        return Exit.UNREACHABLE
    say(batch_id)
    console.print(f"To follow it: `tidemill watch {batch_id}`; -o out.jsonl downloads the results.")
    return Exit.OK


class Token:
    """A producer's token for one stream, renewed after half of its lifetime."""

    def __init__(self, client: Client, stream: str, monotonic: Monotonic = time.monotonic) -> None:
        self._client = client
        self._stream = stream
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
            made = await self._client.send("POST", TOKENS, json={"stream": self._stream})
            self._header = (intake.AUTHORIZATION, f"Bearer {made['token']}".encode())
            self._renew_at = now + (made["expires_at"] - made["created_at"]) / 2
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
