"""Splits a file that exceeds one batch into shards that each fit.

The file is read once, a chunk at a time. A shard is a range of its bytes that begins with a line; all shards
together are the file.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.errors import UsageError
from tidemill.client.files import input_lines
from tidemill.client.http.client import Bounds
from tidemill.client.runs.paths import fault_of
from tidemill.client.runs.reconciliation import LINES
from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.schemas.jsonl.line import name_digest
from tidemill.schemas.jsonl.lines import Line

FAULTS_MAX: Final = 10
"""Faulty lines to report."""
_DUPLICATES: Final = """
SELECT line, first FROM (SELECT line, min(line) OVER (PARTITION BY digest) AS first FROM ids)
WHERE line > first ORDER BY line LIMIT ?
"""


class Shard(msgspec.Struct, frozen=True):
    """A byte range of the file, the input of one batch."""

    number: int
    """Its number, from 0."""
    start: int
    """Offset of its first byte."""
    end: int
    """Offset after its last byte."""
    lines: int
    """Number of lines that are not blank."""
    line: int
    """Number of its first line in the file, from 1."""


class _Request(msgspec.Struct, frozen=True):
    body: dict[str, msgspec.Raw]


_requests = msgspec.json.Decoder(_Request)
_lists = msgspec.json.Decoder(list[msgspec.Raw])


def fits(source: Path, bounds: Bounds, *, endpoint: str) -> bool:
    """Whether a file is one shard.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        size = source.stat().st_size
        return size <= bounds.bytes_max and len(list(_shards(source, bounds, endpoint, lambda _: True))) == 1
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error


def cut(source: Path, bounds: Bounds, *, endpoint: str, name: object = None, done: str = "run") -> list[Shard]:
    """Split a file, which messages call `name`, and check that each line has a `custom_id` of its own.

    A message says with the word `done` what did not happen to the lines. The check of the ids takes 24 bytes of
    disk for a line, and little memory.

    Raises:
        UsageError: The file cannot be read, or has faulty lines; the text names the first ones.
    """
    faults: list[str] = []
    # SQLite moves a temporary database to a file when it outgrows the cache, and sorts it there.
    with closing(sqlite3.connect("")) as ids:
        ids.execute("CREATE TABLE ids (digest BLOB, line INTEGER)")

        def check(line: Line) -> bool:
            if (fault := _fault(line, ids, bounds)) is not None:
                faults.append(f"line {line.number}: {fault}")
            return len(faults) < FAULTS_MAX

        try:
            shards = list(_shards(source, bounds, endpoint, check))
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror}") from error
        if not faults:
            found = ids.execute(_DUPLICATES, (FAULTS_MAX,))
            faults = [f"line {line}: it has the custom_id of line {first}" for line, first in found]
    if faults:
        raise UsageError("\n  ".join((f"{name or source} has faulty lines; no line was {done}.", *faults)))
    return shards


def _shards(source: Path, bounds: Bounds, endpoint: str, check: Callable[[Line], bool]) -> Iterator[Shard]:
    """The shards of a file; ends after a line for which `check` returns False."""
    size, embeds = source.stat().st_size, ENDPOINTS.get(endpoint, UNKNOWN).embeds
    number, start, first, lines, inputs = 0, 0, 1, 0, 0
    for line in input_lines(source, line_bytes_max=bounds.line_bytes_max):
        end = line.offset + (bounds.line_bytes_max if line.data is None else len(line.data) + 1)
        more = _inputs(line, endpoint) if embeds else 0
        is_full = (
            lines >= bounds.lines_max
            or min(end, size) - start > bounds.bytes_max
            or inputs + more > bounds.inputs_max
        )
        # A line that exceeds the bounds gets a shard of its own, which the service rejects with a reason.
        if is_full and lines:
            yield Shard(number=number, start=start, end=line.offset, lines=lines, line=first)
            number, start, first, lines, inputs = number + 1, line.offset, line.number, 0, 0
        lines += 1
        inputs += more
        if not check(line):
            return
    yield Shard(number=number, start=start, end=size, lines=lines, line=first)


def _fault(line: Line, ids: sqlite3.Connection, bounds: Bounds) -> str | None:
    if line.data is None:
        return f"it is longer than {bounds.line_bytes_max:,} bytes"
    try:
        line.data.decode()
        ids.execute("INSERT INTO ids VALUES (?, ?)", (name_digest(LINES.decode(line.data).custom_id), line.number))
    except UNREADABLE as error:
        return fault_of(line.data, error)
    return None


def _inputs(line: Line, endpoint: str) -> int:
    """Number of texts in the prompt of a line; a list of integers is one text, as tokens."""
    try:
        given = bytes(_requests.decode(line.data or b"").body[ENDPOINTS.get(endpoint, UNKNOWN).prompt])
        texts = _lists.decode(given) if given.startswith(b"[") else []
    except (KeyError, *UNREADABLE):
        # `_fault` reports it.
        return 1
    return len(texts) if texts and not bytes(texts[0])[:1].isdigit() else 1
