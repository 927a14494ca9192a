"""`tidemill produce`: the lines of a file go straight to the log, as a stream that is a batch."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from tidemill.client.ending import Exit
from tidemill.client.kafka import Intake
from tidemill.client.place import size_of
from tidemill.client.progress import display
from tidemill.client.service import Client, Refused
from tidemill.client.target import Target
from tidemill.schemas import ids, intake
from tidemill.security import Kafka
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
        target: The service, whose key lets the lines in.
        kafka: Where they go.
        source: JSONL.
        name: The stream's.
        ends: Whether the stream ends with the file.
        output: Whether its results come in `one` file or in `numbered` ones.
    """
    authorization = (intake.AUTHORIZATION, f"Bearer {target.api_key}".encode())
    size = size_of(source)
    async with Client(target.base_url, target.api_key) as client:
        before = await _open(client, name)
    with source.open("rb") as file, display(talk) as shown:
        shown.transfer("produce", size)
        async with Intake(kafka) as door:
            held, headers = None, [authorization, (intake.OUTPUT, output.encode())]
            for value in packed(file):
                if held is not None:
                    await door.send(name, held, headers)
                    shown.moved(len(held) + 1)
                    headers = [authorization]
                held = value
            if held is not None:
                await door.send(name, held, [*headers, (intake.END, b"true")] if ends else headers)
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
    talk.print(f"Watch it: tidemill watch {batch_id}   Results: tidemill watch {batch_id} -o out.jsonl")
    return Exit.OK


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
