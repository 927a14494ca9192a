"""Reads the finished lines of a batch: from its parts while it runs, from its files afterwards.

Either way each source has its columns (`schemas/log/part.py`), so a page is found by index and read by range. A
crash may leave two copies of a line in the parts of a batch; it reads one of them.
"""

import heapq
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.api.view.view import View
from tidemill.bounded_dict import BoundedDict
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.log.part import HEAD_BYTES, Index, index_bytes, index_key, parse_index, part_prefix
from tidemill.schemas.ports import Store, read_all
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.resources.file import file_kind

_log = logging.getLogger(__name__)

INDICES_MAX: Final = 256
"""Indices in the cache; that of 50,000 lines takes 1.2 MB."""
INDEX_LINES_MAX: Final = 4_000_000
"""Lines of all indices in the cache."""
PAGE_BYTES_MAX: Final = 16 << 20
"""A page ends before it exceeds this, but has at least one line."""
RUN_BYTES_MAX: Final = 1 << 20
"""Adjacent lines are read together up to this size; a slow client keeps them in memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """An object with lines, and its index."""

    key: str
    columns: str
    """The key of the object with the index; the same object if the index precedes the lines."""
    failed: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The place of a line."""

    index: int
    failed: bool
    key: str
    start: int
    end: int


def damaged(name: str, why: str) -> ApiError:
    """The stored bytes of a file or of an object are not those that were written; it logs the name."""
    _log.error("the stored file %s is damaged: the store has %s", name, why)
    return ApiError(
        500,
        f"The stored file '{name}' is damaged: the store has {why}. If it has results of a batch, the operator "
        "makes it again with `tidemill rebuild BATCH --write`.",
        kind="server_error",
        code="file_damaged",
        headers={"x-should-retry": "false"},
    )


def without_bytes(view: View, record: FileRecord, deleted: ApiError) -> ApiError:
    """The error of a file of which the store has nothing: it is deleted meanwhile, or damaged."""
    known = view.file(record.project, record.file.id)
    return deleted if known is None else damaged(record.file.id, "none of its bytes")


class Lines:
    """Reads finished lines; caches indices, which never change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._indices: BoundedDict[str, tuple[Index, int]] = BoundedDict(INDICES_MAX)

    def written(self, files: Iterable[tuple[str, str]]) -> list[Source]:
        """The objects with the lines of a finished batch, from the kinds and keys of its files."""
        errors = file_kind(failed=True)
        return [Source(key, index_key(key), kind == errors) for kind, key in files]

    async def running(self, batch_id: str) -> list[Source]:
        """The objects with the lines of a running batch."""
        ending = "." + file_kind(failed=True)
        keys = [key async for key in self._store.keys(part_prefix(batch_id))]
        return [Source(key, key, key.endswith(ending)) for key in keys]

    async def page(self, sources: Iterable[Source], after: int, limit: int) -> list[Found]:
        """The first `limit` lines with an index above `after`, in order.

        Raises:
            NotFound: A source is deleted, because the batch ended meanwhile.
        """
        runs = []
        for source in sources:
            index, base = await self._index(source.columns)
            offset = base if source.columns == source.key else 0
            runs.append(_run(source, index, offset, bisect_right(index.indices, after), limit))
        found: list[Found] = []
        for line in heapq.merge(*runs, key=lambda line: line.index):
            if found and found[-1].index == line.index:
                continue
            if len(found) == limit:
                break
            found.append(line)
        return found

    async def read(self, found: Sequence[Found]) -> AsyncIterator[bytes]:
        """Read lines, without their newlines; adjacent ones of one object together.

        Raises:
            NotFound: An object is deleted.
            ApiError: 500, it has fewer bytes than its index says.
        """
        start = 0
        while start < len(found):
            end = start + 1
            while (
                end < len(found)
                and found[end].key == found[start].key
                and found[end].start == found[end - 1].end
                and found[end].end - found[start].start <= RUN_BYTES_MAX
            ):
                end += 1
            first, last = found[start], found[end - 1]
            data = await read_all(self._store.read(first.key, first.start, last.end))
            if len(data) < last.end - first.start:
                raise damaged(first.key, "fewer bytes than were written")
            for line in found[start:end]:
                yield data[line.start - first.start : line.end - first.start].rstrip(b"\n")
            start = end

    async def _index(self, key: str) -> tuple[Index, int]:
        """The index at the beginning of an object, and its end."""
        if (known := self._indices.use(key)) is not None:
            return known
        end = HEAD_BYTES + index_bytes(await read_all(self._store.read(key, 0, HEAD_BYTES)))
        known = parse_index(await read_all(self._store.read(key, HEAD_BYTES, end))), end
        self._indices[key] = known
        while (
            len(self._indices) > 1 and sum(len(one.indices) for one, _ in self._indices.values()) > INDEX_LINES_MAX
        ):
            self._indices.popitem(last=False)
        return known


def bounded(found: list[Found]) -> list[Found]:
    """The first lines that fit into a page."""
    size = 0
    for place, line in enumerate(found):
        size += line.end - line.start
        if size > PAGE_BYTES_MAX and place:
            return found[:place]
    return found


def _run(source: Source, index: Index, base: int, place: int, limit: int) -> Iterable[Found]:
    for at in range(place, min(place + limit, len(index.indices))):
        start = index.ends[at - 1] if at else 0
        yield Found(index.indices[at], source.failed, source.key, base + start, base + index.ends[at])
