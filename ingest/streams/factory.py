"""The nursery: where a stream begins, or begins anew in another process."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.streams.seen_ids import SeenIds
from tidemill.ingest.streams.stream import State, Stream
from tidemill.retrying import retried
from tidemill.schemas import ids
from tidemill.schemas.bounds import LINE_BYTES_HIGHEST
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.schemas.log.intake import StreamOptions
from tidemill.schemas.ports import Clock, NotFound, Steady, Store
from tidemill.schemas.resources.batch import Batch, Cut, Extras, Status, window_seconds

log = logging.getLogger(__name__)

NO_BOUND: Final = 1 << 62
"""A stream has no limit on its lines or bytes."""


class StreamFactory:
    """Makes streams, each with what its lines are checked against."""

    def __init__(
        self,
        *,
        store: Store,
        models: Mapping[str, tuple[str, ...]],
        windows: tuple[str, ...],
        cut: Cut,
        folder: Path,
        clock: Clock,
        steady: Steady,
        reply_bytes_max: int = LINE_BYTES_HIGHEST,
    ) -> None:
        """Make none yet.

        Args:
            store: Where the parts are.
            models: The models that lines may name, each with its endpoints.
            windows: The completion windows that may be asked for; the first is that of who does not ask.
            cut: What a numbered file of an output holds at most.
            folder: For what does not fit into memory, and outlives nothing.
            clock: Unix time.
            steady: What lasts is measured by it.
            reply_bytes_max: See `Rules`.
        """
        self.windows = windows
        self._store = store
        self._models = models
        self._cut = cut
        self._folder = folder
        self._clock = clock
        self._steady = steady
        self._reply_bytes_max = reply_bytes_max
        self._ids: dict[str, SeenIds] = {}

    def born(
        self, name: tuple[str, str], place: tuple[int, int], wish: StreamOptions, lines: list[bytes]
    ) -> Stream:
        """A stream with its first record.

        Args:
            name: Its project, and its own name.
            place: The record's partition and offset, of which the batch's id is made: the same at each reading.
            wish: What the record asks for.
            lines: Its lines.
        """
        now = int(self._clock())
        batch_id = ids.stream_batch_id(*place)
        window = wish.window or self.windows[0]
        batch = Batch(
            id=batch_id,
            endpoint=wish.endpoint or _endpoint(lines),
            input_file_id=ids.derived_file_id(batch_id, "input"),
            completion_window=window,
            status=Status.IN_PROGRESS,
            created_at=now,
            in_progress_at=now,
            expires_at=now + window_seconds(window),
            metadata=wish.metadata,
            tidemill=Extras(name=name[1], stream=name[1], numbered=self._cut if wish.numbered else None),
        )
        return self._flow(State(partition=place[0], project=name[0], batch=batch))

    async def woken(self, state: State) -> Stream:
        """A stream that another process has left, with all that its lines so far say of the next ones."""
        flow = self._flow(state)
        if not state.sealed:
            for piece in state.pieces:
                recall = functools.partial(self._recall, flow, state.key(piece))
                try:
                    await retried(f"reading {state.id}", recall)
                except NotFound:
                    log.exception("a part of %s is gone, and its lines may come once more", state.id)
        flow.checker.model = state.model
        return flow

    def forget(self, flow: Stream) -> None:
        """A stream takes no more lines here."""
        if (known := self._ids.pop(flow.state.id, None)) is not None:
            known.close()

    def _flow(self, state: State) -> Stream:
        seen = self._ids[state.id] = SeenIds(self._folder / state.id)
        rules = Rules(
            endpoint=state.batch.endpoint,
            models=self._models,
            lines_max=NO_BOUND,
            bytes_max=NO_BOUND,
            reply_bytes_max=self._reply_bytes_max,
        )
        last = state.journal[-1] if state.journal else (0, state.kept_lines, 0, -1)
        return Stream(
            state=state,
            checker=Checker(rules, seen),
            lines=last[1] + last[2],
            heard_at=self._steady(),
            size=sum(piece.bytes for piece in state.pieces),
            awaited={offset for offset, *_ in state.journal},
            seq=state.seq,
        )

    async def _recall(self, flow: Stream, key: str) -> None:
        splitter = Splitter()
        async for chunk in self._store.read(key):
            for line in splitter.feed(chunk):
                flow.checker.fault(line.data or b"")


def _endpoint(lines: list[bytes]) -> str:
    """The url of the first line that has one."""
    for line in lines:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict) and found.get("url") in ENDPOINTS:
            return str(found["url"])
    return next(iter(ENDPOINTS))
