"""Writes the lines of a stream to the store in parts, and joins the parts of a sealed stream to the batch's input.

Every step may be repeated after a crash: the file has the same id and the same bytes.
"""

import asyncio
import functools
import hashlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from opentelemetry.trace import SpanKind

from tidemill.ingest.files.packing import PUBLISH, publication
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.stream import PREFIX, Resources, State, Stream, StreamPart
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.retrying import pause_seconds, reason, retry
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import encode
from tidemill.schemas.log.messages import FileRecord, InputRef, Sealed
from tidemill.schemas.log.part import file_key
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.ports import NotFound, chained, once, read_all
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.waiting import Reason, Waiting
from tidemill.sealing.wrapping import wait_reason
from tidemill.tasks import Background
from tidemill.telemetry import tracing
from tidemill.wording import counted

log = logging.getLogger(__name__)

JOINS_MAX: Final = 2
"""Inputs of one partition that are joined at once."""
LOST_SECONDS: Final = 3600.0
"""How long after its deadline a batch waits for a part that is gone; someone may put it back."""
LOST: Final = b"{}\n"
"""Takes the place of a lost line in the input: a line without an answer gets an error line without `custom_id`."""


class InputAssembly:
    """The parts and inputs of one partition's streams."""

    def __init__(
        self, resources: Resources, publisher: Publisher, *, writer: str, wake: Callable[[], None]
    ) -> None:
        """Start without parts to join.

        Args:
            resources: What the partition shares with the others of the process.
            publisher: Publishes that a batch is complete.
            writer: A token that no other owner of a partition has or had; it is part of the keys of the parts.
            wake: Called when an input is complete.
        """
        self._store = resources.store
        self._sender = resources.sender
        self._clock = resources.clock
        self._quotas = resources.quotas
        self._input_life_seconds = resources.times.input_life_seconds
        self._publisher = publisher
        self._writer = writer
        self._wake = wake
        self._joined: list[str] = []
        self._background = Background()
        self._room = asyncio.Semaphore(JOINS_MAX)
        self._reports = StallReports("join")

    async def flush(self, stream: Stream, part_bytes: int) -> str | None:
        """Write a stream's buffer as its last part.

        The new part also absorbs a small last part, so that a slow stream does not get thousands of parts.

        Returns:
            The key of the part that the new one replaces, to be removed once the stream is kept without it.

        Raises:
            Unavailable: The store refused the part. It may appear later, so no other part may have its number.
        """
        state = stream.state
        last = state.parts[-1] if state.parts else None
        taken = last if last is not None and last.bytes + stream.buffer_bytes <= part_bytes else None
        before = b"" if taken is None else await self._content(state, taken)
        if before is None:
            taken, before = None, b""
        stream.tried_part = max(stream.tried_part, last.number if last else -1) + 1
        part = StreamPart(
            number=stream.tried_part,
            writer=self._writer,
            lines=len(stream.buffer) + (taken.lines if taken else 0),
            bytes=stream.buffer_bytes + (taken.bytes if taken else 0),
        )
        content = b"\n".join([*stream.buffer, b""])

        async def chunks() -> AsyncIterator[bytes]:
            yield before + content

        try:
            await self._store.write(state.key(part), chunks())
        except OSError as error:
            raise Unavailable(f"its lines cannot be stored: {reason(error)}", wait_reason(error)) from error
        stream.keep(part, 1 if taken else 0)
        return state.key(taken) if taken is not None else None

    async def _content(self, state: State, part: StreamPart) -> bytes | None:
        """The lines of a part; None if it cannot be read."""
        try:
            return await read_all(self._store.read(state.key(part)))
        except (OSError, NotFound) as error:
            log.warning("a part of %s cannot be read (%s)", state.id, type(error).__name__)
            return None

    async def remove(self, key: str) -> None:
        """Remove a part that no stream refers to; if that fails, `clear` removes it."""
        try:
            await self._store.delete(key)
        except OSError:
            log.warning("could not remove an unneeded part", exc_info=True)

    async def clear(self, batch_id: str) -> None:
        """Remove all parts of a stream, orphans too; parts that cannot be removed stay."""
        try:
            async for key in self._store.keys(f"{PREFIX}{batch_id}/"):
                await self._store.delete(key)
        except OSError:
            log.warning("parts of %s could not be removed", batch_id, exc_info=True)

    def start(self, stream: Stream) -> None:
        """Join the parts of a sealed stream to its input, and publish that it is complete."""
        join = functools.partial(self._join, stream.state, stream.lines)
        self._background.start(retry(f"completing {stream.state.id}", join, faults=Exception))

    def joined(self) -> list[str]:
        """The batches whose inputs have become complete since the last call."""
        joined, self._joined = self._joined, []
        return joined

    def abandon(self) -> None:
        """Stop; the next owner starts again."""
        self._background.cancel()

    async def _join(self, state: State, lines: int) -> None:
        if (found := await self._input(state)) is not None:
            await self._publish(state, lines, *found)
        self._joined.append(state.id)
        self._wake()

    async def _publish(self, state: State, lines: int, size: int, sha256: str) -> None:
        batch = state.batch
        tracing.past(PUBLISH, SpanKind.PRODUCER, batch, publication(lines), since=batch.created_at * 10**9)
        file = File(
            id=batch.input_file_id,
            bytes=size,
            created_at=batch.created_at,
            expires_at=batch.created_at + self._input_life_seconds,
            filename=f"{batch.id}_input.jsonl",
            purpose="batch",
        )
        key = file_key(file.id)
        record = FileRecord(project=state.project, file=file, key=key, sha256=sha256, lines=lines)
        await retry(
            "sending the record of an input",
            lambda: self._sender.send(topics.FILES.name, file.id, encode(record)),
        )
        source = InputRef(key=key, bytes=size)
        await self._publisher.send_fact(
            Sealed(
                batch_id=state.id,
                total=lines,
                model=state.model,
                input=source,
                dropped_records=state.dropped or None,
            )
        )

    async def _input(self, state: State) -> tuple[int, str] | None:
        """Write the input, and retry until that works; meanwhile the batch shows why it is not complete.

        None if a former owner has published it: a user may have deleted the input, or the batch, since then.
        """
        since = 0
        for failures in itertools.count():
            if self._quotas.has_input(state.id) or self._publisher.is_erased(state.id):
                return None
            try:
                found = await self._write(state)
            except OSError as error:
                why, is_lost = reason(error), isinstance(error, FileNotFoundError)
                since = since or int(self._clock())
            else:
                if failures:
                    await self._report(state)
                return found
            pause = pause_seconds(failures)
            log.warning("the input of %s cannot be written: %s; next attempt in %.1f s", state.id, why, pause)
            message = f"The input of the batch cannot be written: {why}."
            await self._report(state, Waiting.of(Reason.FILES, message, since=since))
            await asyncio.sleep(pause)
            if is_lost and self._clock() >= state.batch.expires_at + LOST_SECONDS:
                await retry(f"replacing lost parts of {state.id}", lambda: self._replace(state))
        raise AssertionError

    async def _report(self, state: State, *waiting: Waiting) -> None:
        await self._publisher.send_fact(self._reports.on(state.id, *waiting))

    async def _replace(self, state: State) -> None:
        """Write parts in place of those that are gone, so that the batch ends."""
        for part in state.parts:
            try:
                async for _ in self._store.read(state.key(part)):
                    pass
            except NotFound:
                log.error("lost: %s of %s", counted(part.lines, "line"), state.id)  # noqa: TRY400  the store lost them
                await self._store.write(state.key(part), once(LOST * part.lines))

    async def _write(self, state: State) -> tuple[int, str]:
        """Join the parts to the input; returns its bytes and SHA-256. The lines are read for the hash alone."""
        sources = [state.key(part) for part in state.parts]
        try:
            # The semaphore is free before the next attempt, so a failing join does not delay others.
            async with self._room:
                size = await self._store.join(file_key(state.batch.input_file_id), sources)
                digest = hashlib.sha256()
                async for chunk in chained(self._store, sources):
                    digest.update(chunk)
        except NotFound as error:
            # An `OSError`, so that the join is retried: an operator may restore the part.
            raise FileNotFoundError(f"{error} is not in the store") from error
        return size, digest.hexdigest()
