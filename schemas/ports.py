"""Interfaces through which the stages use the object store, the log and the clock."""

import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from tidemill.schemas.log.codec import Headers

Clock = Callable[[], float]
"""Unix time in seconds, for deadlines; may jump in both directions, by minutes."""

Monotonic = Callable[[], float]
"""Seconds of a monotonic clock, for durations; its zero differs between processes."""

_BOOTTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """A monotonic clock that goes on while the machine is suspended, unlike `time.monotonic` on Linux."""
    return time.clock_gettime(_BOOTTIME)


# Segments of ids, joined by slashes; none starts with a dot, unlike `..` and hidden files.
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"(?:{_SEGMENT}/){{0,7}}{_SEGMENT}\Z")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/){{0,7}}(?:{_SEGMENT})?\Z")
READ_BYTES = 256 << 10
"""The largest chunk of `Store.read`."""


class NotFound(Exception):
    """The store has no object with this key."""


class RecordTooLarge(Exception):
    """A record does not fit into the log; the text names its topic, key and size."""


class Store(Protocol):
    """Objects under keys like `files/7f/file-…`, made of ids and not of user input.

    An object is complete or does not exist. Any call may be repeated after a failure. Failures of the store are
    `OSError`.
    """

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """Write or replace an object, and return its size in bytes once it is durable.

        An exception of `chunks` passes through, and nothing is written.
        """
        ...

    async def create(self, key: str, content: bytes) -> bool:
        """Write a small object, unless there is one; returns whether it did.

        Of several calls, from any processes, one writes; a server that ignores conditions lets all of them write.
        """
        ...

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """Like `write`, with the content of other objects, one after the other.

        Raises:
            NotFound: A source does not exist.
        """
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to, not including, `end`, in chunks of at most `READ_BYTES`.

        A reader that stops early closes it (`contextlib.aclosing`), which frees the connection or the file.

        Raises:
            NotFound: At the first chunk, if the object does not exist.
        """
        ...

    async def size(self, key: str) -> int:
        """Size in bytes.

        Raises:
            NotFound: The object does not exist.
        """
        ...

    async def link(self, key: str, disposition: str) -> str | None:
        """A temporary URL of an object, which may not exist, with this `Content-Disposition`.

        Anyone can read from the URL. None if the store has no such URLs.
        """
        ...

    async def free(self) -> int | None:
        """Free bytes of the store; None if it does not report them."""
        ...

    async def delete(self, key: str) -> None:
        """Delete the object, if it exists."""
        ...

    def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys with a prefix; sorted within a folder, the folders in any order."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Sender(Protocol):
    """Appends records to the log. Failures are `OSError`; the record may be in the log anyway."""

    async def send(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        *,
        headers: Headers = ...,
        partition: int | None = ...,
    ) -> int:
        """Append a record; return its offset once every in-sync replica has it.

        The key chooses the partition, unless `partition` is given; the value None is a tombstone.

        Raises:
            OSError: The acknowledgement did not come in time.
            RecordTooLarge: It does not fit into the log.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A position in each partition of a topic: an offset or a time."""

    offset: int | None = None
    at_ms: int | None = None
    """Unix milliseconds: the first record that is not older."""


@dataclass(frozen=True, kw_only=True)
class LogRecord:
    """A record of a topic."""

    at_ms: int
    """When it was written, Unix milliseconds."""
    value: bytes
    headers: Headers


class Outbox(Protocol):
    """Appends to `outcomes`."""

    async def send(self, batch_id: str, value: bytes, headers: Headers) -> None:
        """Append a record; return once the log has it, however long it is unavailable.

        Raises:
            RecordTooLarge: It does not fit into the log.
        """
        ...


async def once(*pieces: bytes) -> AsyncIterator[bytes]:
    """The pieces, as `Store.write` takes them."""
    for piece in pieces:
        yield piece


async def read_all(chunks: AsyncIterable[bytes]) -> bytes:
    """All chunks as one value, as those of `Store.read`."""
    return b"".join([chunk async for chunk in chunks])


async def chained(store: Store, keys: Sequence[str]) -> AsyncIterator[bytes]:
    """The bytes of objects, one after the other.

    Raises:
        NotFound: One of them does not exist.
    """
    for key in keys:
        async with aclosing(store.read(key)) as chunks:
            async for chunk in chunks:
                yield chunk


def checked_key(key: str) -> str:
    """The key itself.

    Raises:
        ValueError: It is not a key.
    """
    if _KEY.match(key) is None:
        raise ValueError("not a key of the store")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix itself.

    Raises:
        ValueError: It is not a prefix of keys.
    """
    if _PREFIX.match(prefix) is None:
        raise ValueError("not a prefix of keys of the store")
    return prefix
