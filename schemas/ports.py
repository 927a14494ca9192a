"""The ports: what the stages ask of the object store, the log and the clock, each once."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tidemill.schemas.log.codec import Headers

Clock = Callable[[], float]
"""Unix time in seconds. It is what deadlines are in, and may be stepped at any time, by minutes and back."""

Monotonic = Callable[[], float]
"""Seconds of a monotonic clock, for durations; its zero differs between processes."""

READ_BYTES = 1 << 20
"""The most that `Store.read` hands over at a time."""


class NotFound(Exception):
    """The store holds no object of that key."""


class RecordTooLarge(Exception):
    """A record does not fit into the log, now or later; the text names its topic, its key and its size."""


class Store(Protocol):
    """Objects under keys like `files/file-…`; a key is made of ids, never of what a user wrote.

    An object is whole or not there: a write that breaks off leaves nothing to be read. Any call may be made
    again after a failure. Failures of the store itself are `OSError`.
    """

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """Store the chunks as one object and return its size in bytes; replaces what was there.

        Durable on return. An exception out of `chunks` passes through, and nothing is stored.
        """
        ...

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """Store other objects, one after the other, as one, and return its size in bytes; as `write` does.

        Raises:
            NotFound: One of the sources is not there.
        """
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`, in chunks of at most `READ_BYTES`.

        Raises:
            NotFound: At the first chunk, where there is no such object.
        """
        ...

    async def size(self, key: str) -> int:
        """Size in bytes.

        Raises:
            NotFound: There is no such object.
        """
        ...

    async def link(self, key: str, disposition: str) -> str | None:
        """An address from which anyone who has it can read the object for a while; None where there is no such.

        Args:
            key: The object, which may not be there.
            disposition: The `Content-Disposition` of the answer there.
        """
        ...

    async def free(self) -> int | None:
        """Bytes that are free where the objects are kept; None where there is no such number."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; one that is not there is fine."""
        ...

    def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys that start with the prefix; those of one folder in order, the folders in any."""
        ...

    async def close(self) -> None:
        """Give back what the door holds open."""
        ...


class Sender(Protocol):
    """Appends records to the log. Failures of the log are `OSError`; what failed may have landed all the same."""

    async def send(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        *,
        headers: Headers = ...,
        partition: int | None = ...,
    ) -> int:
        """Append a record and return its offset; on return every in-sync replica has it.

        Args:
            topic: Its name.
            key: Chooses the partition, where none is given.
            value: None is a tombstone.
            headers: Of the record.
            partition: Its number.

        Raises:
            OSError: There was no acknowledgement in time.
            RecordTooLarge: It is.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A place in every partition of a topic: one of the two is set."""

    offset: int | None = None
    at_ms: int | None = None
    """The first record that is not older, Unix milliseconds."""


@dataclass(frozen=True, kw_only=True)
class LogRecord:
    """A record of a topic."""

    at_ms: int
    """When it was written, Unix milliseconds."""
    value: bytes
    headers: Headers


class History(Protocol):
    """Reads what the log still has."""

    def entries(self, topic: str, start: Edge, end: Edge | None) -> AsyncGenerator[LogRecord, None]:
        """The records of a topic, those of each partition in order; none if there is no such topic.

        Args:
            topic: Its name.
            start: Where to begin in each partition.
            end: Where to stop in each, this one left out; None is where they end now.

        Raises:
            OSError: The log does not answer.
        """
        ...


class Outbox(Protocol):
    """Appends to `outcomes`."""

    async def send(self, batch_id: str, value: bytes, headers: Headers) -> None:
        """Append a record and return once the log has it, however long the log is away.

        Raises:
            RecordTooLarge: It is.
        """
        ...


async def chained(store: Store, keys: Sequence[str]) -> AsyncIterator[bytes]:
    """The bytes of objects, one after the other.

    Raises:
        NotFound: One is not there.
    """
    for key in keys:
        async for chunk in store.read(key):
            yield chunk
