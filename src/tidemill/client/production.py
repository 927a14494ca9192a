"""`tidemill produce`: the lines of a file go straight to the log, as a stream that is a batch."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from tidemill.client.exit_codes import Exit
from tidemill.client.http import Client, Refused
from tidemill.client.kafka import Intake
from tidemill.client.keys import TOKENS
from tidemill.client.progress import display
from tidemill.client.runs.paths import size_of
from tidemill.client.target import Target
from tidemill.configuration.security import Kafka
from tidemill.schemas import ids
from tidemill.schemas.log import intake
from tidemill.schemas.ports import Steady
from tidemill.terminal import Console, say

RECORD_BYTES_MAX: Final = 64 * 1024
"""Lines of one record; a single line may be larger."""
LOOKS_MAX: Final = 40
LOOKS_OPEN_MAX: Final = 4
LOOK_SECONDS: Final = 0.25
"""How often the service is asked for the batch, where the stream was open too, and how far apart."""
RECENT_MAX: Final = 100
"""Batches among which one is looked for that somebody else has opened."""


async def produce(
    talk: Console, target: Target, kafka: Kafka, source: Path, name: str, *, ends: bool, output: str
) -> Exit:
    """Send a file as a stream, and print the id of its batch on stdout.

    Args:
        talk: Where all else is said.
        target: The service, which makes the token that lets the lines in.
        kafka: Where they go.
        source: JSONL.
        name: The stream's.
        ends: Whether the stream ends with the file.
        output: Whether its results come in `one` file or in `numbered` ones.
    """
    size = size_of(source)
    async with Client(target.base_url, target.api_key) as client:
        before = await _open(client, name)
        token = Token(client, name)
        with source.open("rb") as file, display(talk) as shown:
            shown.transfer("produce", size)
            async with Intake(kafka) as door:
                held, more = None, [(intake.OUTPUT, output.encode())]
                for value in packed(file):
                    if held is not None:
                        await door.send(name, held, [await token.header(), *more])
                        shown.moved(len(held) + 1)
                        more = []
                    held = value
                if held is not None:
                    end = [(intake.END, b"true")] if ends else []
                    await door.send(name, held, [await token.header(), *more, *end])
                    shown.moved(len(held) + 1)
                await door.sent()
    if door.first is None:
        talk.print("tidemill: the file has no line", style="red")
        return Exit.USAGE
    async with Client(target.base_url, target.api_key) as client:
        batch_id = await _found(client, ids.stream_batch_id(*door.first), before)
    if batch_id is None:
        talk.print("tidemill: the lines are in Kafka, but no batch of theirs is known yet: see `tidemill list`,")
        talk.print("and `tidemill dead list` for what could not be taken.")
        return Exit.UNREACHABLE
    say(batch_id)
    talk.print(f"To watch it: `tidemill watch {batch_id}`; with -o out.jsonl it fetches the results.")
    return Exit.OK


class Token:
    """A producer's token for one stream, made anew when half of its time is over."""

    def __init__(self, client: Client, stream: str, steady: Steady = time.monotonic) -> None:
        self._client = client
        self._stream = stream
        self._steady = steady
        self._header = (intake.AUTHORIZATION, b"")
        self._good_until = 0.0

    async def header(self) -> tuple[str, bytes]:
        """The header of the next record.

        Raises:
            Refused: The key may not write.
        """
        now = self._steady()
        if now >= self._good_until:
            made = await self._client.post(TOKENS, {"stream": self._stream})
            self._header = (intake.AUTHORIZATION, f"Bearer {made['token']}".encode())
            self._good_until = now + (made["expires_at"] - made["created_at"]) / 2
        return self._header


def packed(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, as many to a record as fit."""
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
    """The batch of a stream that is open already, among the recent ones."""
    async for batch in client.batches(limit=RECENT_MAX):
        if batch.tidemill.stream == name and not batch.status.is_terminal:
            return batch.id
    return None


async def _found(client: Client, derived: str, before: str | None) -> str | None:
    """The batch of the lines: the one that the first record has opened, or else the one that was open before."""
    for _ in range(LOOKS_MAX if before is None else LOOKS_OPEN_MAX):
        try:
            return (await client.batch(derived)).id
        except Refused as error:
            if error.status != 404:  # noqa: PLR2004 - it may be another's, or not be there yet
                raise
        await asyncio.sleep(LOOK_SECONDS)
    return before
