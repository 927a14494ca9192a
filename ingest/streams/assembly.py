"""The input of a stream: its lines go to the store in parts, and at its seal the parts become one file.

Every step may be repeated after a crash: the file has the same id and the same bytes.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.stream import PREFIX, Piece, State, Stream
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.retrying import reason, retry
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import encode
from tidemill.schemas.log.messages import FileRecord, InputRef, Sealed
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import Clock, NotFound, Sender, Store, chained
from tidemill.schemas.resources.file import BATCH_FILE_LIFE_SECONDS, File

log = logging.getLogger(__name__)

JOINS_MAX: Final = 2
"""Inputs of one partition that are put together at one time."""


class InputAssembly:
    """Writes parts, and joins them."""

    def __init__(
        self,
        *,
        store: Store,
        sender: Sender,
        publisher: Publisher,
        clock: Clock,
        writer: str,
        wake: Callable[[], None],
    ) -> None:
        """Begin with nothing under way.

        Args:
            store: Where parts and files are.
            sender: The log, for records of files.
            publisher: Tells that a batch is whole.
            clock: Unix time.
            writer: Of no other owner of a partition, now or before; part of the keys of its parts.
            wake: Called when an input is whole.
        """
        self._store = store
        self._sender = sender
        self._publisher = publisher
        self._clock = clock
        self._writer = writer
        self._wake = wake
        self._joined: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(JOINS_MAX)

    async def flush(self, stream: Stream, part_bytes: int) -> str | None:
        """Write a stream's buffer as its last part.

        A small last part is taken into the new one, so that a stream that trickles is not a thousand parts.

        Returns:
            The key of the part that the new one replaces, to be removed once the stream is kept without it.

        Raises:
            Unavailable: The store refused it. It may appear there yet, so no other part may have its number.
        """
        state = stream.state
        last = state.pieces[-1] if state.pieces else None
        taken = last if last is not None and last.bytes + stream.buffer_bytes <= part_bytes else None
        before = b"" if taken is None else await self._content(state, taken)
        if before is None:
            taken, before = None, b""
        stream.tried_piece = max(stream.tried_piece, last.number if last else -1) + 1
        piece = Piece(
            number=stream.tried_piece,
            writer=self._writer,
            lines=len(stream.buffer) + (taken.lines if taken else 0),
            bytes=stream.buffer_bytes + (taken.bytes if taken else 0),
        )
        content = b"\n".join([*stream.buffer, b""])

        async def chunks() -> AsyncIterator[bytes]:
            yield before + content

        try:
            await self._store.write(state.key(piece), chunks())
        except OSError as error:
            raise Unavailable(f"its lines cannot be stored: {reason(error)}") from error
        stream.keep(piece, 1 if taken else 0)
        return state.key(taken) if taken is not None else None

    async def _content(self, state: State, piece: Piece) -> bytes | None:
        """The lines of a part; None if it cannot be read, and then it stays as it is."""
        try:
            return b"".join([chunk async for chunk in self._store.read(state.key(piece))])
        except (OSError, NotFound) as error:
            log.warning("a part of %s cannot be read (%s)", state.id, type(error).__name__)
            return None

    async def remove(self, key: str) -> None:
        """Remove a part that no stream names; what fails here goes with the rest at the end."""
        try:
            await self._store.delete(key)
        except OSError:
            log.warning("a part that is not needed could not be removed", exc_info=True)

    async def clear(self, batch_id: str) -> None:
        """Remove all parts of a stream, orphans too; what fails here stays."""
        try:
            async for key in self._store.keys(f"{PREFIX}{batch_id}/"):
                await self._store.delete(key)
        except OSError:
            log.warning("parts of %s could not be removed", batch_id, exc_info=True)

    def start(self, stream: Stream) -> None:
        """Join the parts of a sealed stream to its input, and publish that it is complete."""
        task = asyncio.create_task(self._join(stream.state, stream.lines))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def joined(self) -> list[str]:
        """The batches whose inputs have become whole since this was last asked."""
        joined, self._joined = self._joined, []
        return joined

    def abandon(self) -> None:
        """Stop; the next owner begins anew."""
        for task in self._tasks:
            task.cancel()

    async def _join(self, state: State, lines: int) -> None:
        batch = state.batch
        size, sha256 = await retry(f"the input of {state.id}", lambda: self._write(state))
        file = File(
            id=batch.input_file_id,
            bytes=size,
            created_at=batch.created_at,
            expires_at=batch.created_at + BATCH_FILE_LIFE_SECONDS,
            filename=f"{batch.id}_input.jsonl",
            purpose="batch",
        )
        key = file_key(file.id)
        record = FileRecord(project=state.project, file=file, key=key, sha256=sha256, lines=lines)
        await retry(
            "sending the record of an input",
            lambda: self._sender.send(topics.FILES.name, file.id, encode(record), headers=[]),
        )
        source = InputRef(key=key, bytes=size)
        await self._publisher.sealed(Sealed(batch_id=state.id, total=lines, model=state.model, input=source))
        self._joined.append(state.id)
        self._wake()

    async def _write(self, state: State) -> tuple[int, str]:
        """The file, of which only the hash comes by here where the store can put its parts together by itself."""
        sources = [state.key(piece) for piece in state.pieces]
        try:
            # Its place is given back before the next try: one that fails holds up no other.
            async with self._room:
                size = await self._store.join(file_key(state.batch.input_file_id), sources)
                digest = hashlib.sha256()
                async for chunk in chained(self._store, sources):
                    digest.update(chunk)
        except NotFound as error:
            # It may be put back, and until then the stream alone waits.
            raise FileNotFoundError(f"{error} is not in the store") from error
        return size, digest.hexdigest()
