"""Creates streams, restores those of a previous owner, and remembers the `custom_id`s of each."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import orjson
from opentelemetry.trace import SpanKind

from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.sqlite import Digests
from tidemill.ingest.streams.stream import Resources, State, Stream
from tidemill.retrying import retry
from tidemill.schemas import ids
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.line import name_digest
from tidemill.schemas.jsonl.lines import lines_of
from tidemill.schemas.log import topics
from tidemill.schemas.log.intake import StreamOptions
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.resources.batch import Batch, Cut, Extras, Status, window_seconds
from tidemill.telemetry import tracing

log = logging.getLogger(__name__)

NO_BOUND: Final = 1 << 62
"""A stream has no limit on its lines or bytes."""
IN_MEMORY_MAX: Final = 50_000
"""`custom_id`s of one stream in memory: some 6 MB."""


class StreamFactory:
    """Creates streams, each with the checker of its lines."""

    def __init__(
        self,
        resources: Resources,
        *,
        rules: Callable[[], Rules],
        windows: Collection[str],
        default_window: str,
        cut: Cut,
        folder: Path,
    ) -> None:
        """Begin without streams.

        Args:
            resources: What the partition shares with the others of the process.
            rules: Gives the rules for all lines of a new stream; each stream has its own endpoint.
            windows: The completion windows that a record may ask for.
            default_window: The window of a record that asks for none.
            cut: The bounds of a numbered output file.
            folder: For `custom_id`s that do not fit into memory; each file is removed with its stream.
        """
        self.windows = windows
        self._default_window = default_window
        self._store = resources.store
        self._clock = resources.clock
        self._monotonic = resources.monotonic
        self._rules = rules
        self._cut = cut
        self._folder = folder
        self._ids: dict[str, SeenIds] = {}

    def create(
        self, name: tuple[str, str], place: tuple[int, int], options: StreamOptions, lines: list[bytes]
    ) -> Stream:
        """Create the stream of a first record.

        Args:
            name: The stream's project and name.
            place: The record's partition and offset. They determine the batch's id, so a replay creates the same.
            options: The options in the record's headers.
            lines: The record's lines; the first url is the batch's endpoint, if the options have none.
        """
        now = int(self._clock())
        batch_id = ids.stream_batch_id(*place)
        attributes = tracing.messaging("create", "process", topics.INTAKE.name) | {tracing.BATCH_ID: batch_id}
        parent = tracing.context_of(options.traceparent)
        with tracing.span(f"create {topics.INTAKE.name}", SpanKind.CONSUMER, attributes, parent=parent) as made:
            traceparent = tracing.traceparent_of(made)
        window = options.window or self._default_window
        batch = Batch(
            id=batch_id,
            endpoint=options.endpoint or _endpoint(lines),
            input_file_id=ids.derived_file_id(batch_id, "input"),
            completion_window=window,
            status=Status.IN_PROGRESS,
            created_at=now,
            in_progress_at=now,
            expires_at=now + window_seconds(window),
            metadata=options.metadata,
            tidemill=Extras(
                name=name[1],
                stream=name[1],
                stream_partition=place[0],
                open=True,
                input_bytes=0,
                traceparent=traceparent,
                numbered=self._cut if options.numbered else None,
            ),
        )
        return self._stream(State(partition=place[0], project=name[0], batch=batch))

    def open(self, partition: int, command: BatchCreated) -> Stream:
        """Create the stream of a batch that the api opens."""
        state = State(
            partition=partition,
            project=command.project,
            batch=command.batch,
            output_expires_after=command.output_expires_after,
            answer_schema=command.answer_schema,
        )
        return self._stream(state)

    async def restore(self, state: State) -> Stream:
        """Restore a stream of a previous owner: its `custom_id`s come from its parts, its model from the state."""
        stream = self._stream(state)
        if state.model is not None:
            stream.checker.choose(state.model)
        if not state.sealed:
            # The present rules may differ from those that the lines were checked by, so they choose no model.
            replayed = Checker(self._rules_of(state, models={}), self._ids[state.id])
            for part in state.parts:
                replay = functools.partial(self._replay, replayed, state.id, state.key(part))
                try:
                    await retry(f"reading {state.id}", replay)
                except Exception:
                    # Without this stream the partition would never begin.
                    log.exception("a part of %s is gone: copies of its lines will not be recognised", state.id)
        return stream

    def renew(self, stream: Stream) -> None:
        """Take the present rules while the stream has no model: one may have been added since it began."""
        if stream.state.model is None:
            stream.checker = Checker(self._rules_of(stream.state), self._ids[stream.state.id])

    def forget(self, stream: Stream) -> None:
        """Free the memory of a stream that accepts no more lines here."""
        if (known := self._ids.pop(stream.state.id, None)) is not None:
            known.close()

    def _stream(self, state: State) -> Stream:
        seen = self._ids[state.id] = SeenIds(self._folder / state.id)
        last = state.journal[-1] if state.journal else (0, state.kept_lines, 0, -1)
        return Stream(
            state=state,
            checker=Checker(self._rules_of(state), seen),
            lines=last[1] + last[2],
            last_record_at=self._monotonic(),
            size=sum(part.bytes for part in state.parts),
            awaited={offset for offset, *_ in state.journal},
            seq=state.seq,
        )

    def _rules_of(self, state: State, **others: Any) -> Rules:
        return dataclasses.replace(self._rules(), endpoint=state.batch.endpoint, project=state.project, **others)

    async def _replay(self, checker: Checker, batch_id: str, key: str) -> None:
        """Check the lines of a part again, which fills the checker."""
        async for lines in lines_of(self._store.read(key)):
            for line in lines:
                try:
                    checker.fault(line.data or b"")
                except OSError:
                    raise
                except Exception as error:  # noqa: BLE001  the partition would never begin
                    log.error("%s: a kept line raised %s", batch_id, type(error).__name__)  # noqa: TRY400


def _endpoint(lines: list[bytes]) -> str:
    """The url of the first line that has one."""
    for line in lines:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict) and isinstance(url := found.get("url"), str) and url in ENDPOINTS:
            return url
    return next(iter(ENDPOINTS))


class SeenIds:
    """The `custom_id`s of a stream: in memory up to a bound, above it on disk."""

    def __init__(self, file: Path) -> None:
        """Begin without ids; `file` holds those above the bound, and `close` removes it."""
        self._file = file
        self._few: set[bytes] = set()
        self._many: Digests | None = None

    def setdefault(self, kept: str | bytes, number: int) -> int:
        """Add an id; returns `number` if it is new, else 0.

        Raises:
            OSError: The disk is full, or fails, and the id was not added.
        """
        digest = name_digest(kept)
        if digest in self._few or (self._many is not None and digest in self._many):
            return 0
        if len(self._few) >= IN_MEMORY_MAX:
            # It may fail halfway: afterwards some digests are in both sets, and this one is in neither.
            self._spill()
        self._few.add(digest)
        return number

    def _spill(self) -> None:
        if self._many is None:
            self._many = Digests(self._file)
        self._many.update(self._few)
        self._few.clear()

    def close(self) -> None:
        """Forget all ids."""
        self._few.clear()
        if self._many is not None:
            self._many.close()
            self._many = None
