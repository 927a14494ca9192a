"""The factory: where a stream begins, or begins anew in another process."""

import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.sqlite import Digests
from tidemill.ingest.streams.stream import State, Stream
from tidemill.retrying import retry
from tidemill.schemas import ids
from tidemill.schemas.bounds import LINE_BYTES_HIGHEST
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.schemas.log.intake import StreamOptions
from tidemill.schemas.ports import Clock, Monotonic, NotFound, Store
from tidemill.schemas.resources.batch import Batch, Cut, Extras, Status, window_seconds

log = logging.getLogger(__name__)

NO_BOUND: Final = 1 << 62
"""A stream has no limit on its lines or bytes."""
IN_MEMORY_MAX: Final = 50_000
"""`custom_id`s of one stream; some 6 MB."""


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
        monotonic: Monotonic,
        reply_bytes_max: int = LINE_BYTES_HIGHEST,
    ) -> None:
        """Make none yet.

        Args:
            store: Where the parts are.
            models: The models that lines may name, each with its endpoints.
            windows: The completion windows that a record may ask for; the first is the default.
            cut: What a numbered file of an output holds at most.
            folder: For what does not fit into memory, and outlives nothing.
            clock: Unix time.
            monotonic: What lasts is measured by it.
            reply_bytes_max: See `Rules`.
        """
        self.windows = windows
        self._store = store
        self._models = models
        self._cut = cut
        self._folder = folder
        self._clock = clock
        self._monotonic = monotonic
        self._reply_bytes_max = reply_bytes_max
        self._ids: dict[str, SeenIds] = {}

    def create(
        self, name: tuple[str, str], place: tuple[int, int], options: StreamOptions, lines: list[bytes]
    ) -> Stream:
        """A stream with its first record.

        Args:
            name: Its project, and its own name.
            place: The record's partition and offset, of which the batch's id is made: the same at each reading.
            options: What the record asks for.
            lines: Its lines.
        """
        now = int(self._clock())
        batch_id = ids.stream_batch_id(*place)
        window = options.window or self.windows[0]
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
            tidemill=Extras(name=name[1], stream=name[1], numbered=self._cut if options.numbered else None),
        )
        return self._stream(State(partition=place[0], project=name[0], batch=batch))

    async def restore(self, state: State) -> Stream:
        """A stream that another process has left, with all that its lines so far say of the next ones."""
        stream = self._stream(state)
        if not state.sealed:
            for piece in state.pieces:
                recall = functools.partial(self._recall, stream, state.key(piece))
                try:
                    await retry(f"reading {state.id}", recall)
                except NotFound:
                    log.exception("a part of %s is gone, and its lines may come once more", state.id)
        stream.checker.model = state.model
        return stream

    def forget(self, stream: Stream) -> None:
        """A stream takes no more lines here."""
        if (known := self._ids.pop(stream.state.id, None)) is not None:
            known.close()

    def _stream(self, state: State) -> Stream:
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
            last_record_at=self._monotonic(),
            size=sum(piece.bytes for piece in state.pieces),
            awaited={offset for offset, *_ in state.journal},
            seq=state.seq,
        )

    async def _recall(self, stream: Stream, key: str) -> None:
        splitter = Splitter()
        async for chunk in self._store.read(key):
            for line in splitter.feed(chunk):
                stream.checker.fault(line.data or b"")


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


class SeenIds:
    """The `custom_id`s of a stream: in memory up to a bound, beyond it on disk."""

    def __init__(self, file: Path, in_memory_max: int = IN_MEMORY_MAX) -> None:
        """Begin with none.

        Args:
            file: Where those beyond the bound are kept; it holds nothing that outlives this object.
            in_memory_max: The bound.
        """
        self._file = file
        self._in_memory_max = in_memory_max
        self._few: set[bytes] = set()
        self._many: Digests | None = None

    def setdefault(self, kept: str | bytes, number: int) -> int:
        """Remember one; 0 where it is remembered already, else `number`."""
        digest = _digest(kept)
        if digest in self._few or (self._many is not None and digest in self._many):
            return 0
        self._few.add(digest)
        if len(self._few) >= self._in_memory_max:
            if self._many is None:
                self._many = Digests(self._file)
            self._many.update(self._few)
            self._few.clear()
        return number

    def close(self) -> None:
        """Forget all of them."""
        self._few.clear()
        if self._many is not None:
            self._many.close()
            self._many = None


def _digest(kept: str | bytes) -> bytes:
    data = kept if isinstance(kept, bytes) else kept.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()
