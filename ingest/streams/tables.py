"""The table of streams, as one partition of the intake sees it: each row under the name of the owner who wrote it.

| key | value |
|---|---|
| batch id, `/` and an owner | a stream on its way to be a batch |
| `decided/`, the partition, `/` and an owner | up to which offset every record is decided on |

A process that has lost its partition may not know yet, and what it sent may arrive much later. It replaces no row
of its successor, neither here nor when the log compacts the changelog (docs/decisions/0037). An owner first writes
all streams under its own name, and then up to where they are decided on; what owners before the last one who has
said that have left counts for nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from tidemill.ingest.streams.stream import State

ERA_BITS: Final = 32
"""Of an owner's number the lower half is the generation; the upper one grows where a group counts anew."""
OWNER_DIGITS: Final = 16
_DECIDED: Final = b"decided/"


class Rows(Protocol):
    """The table, of which a partition may see the rows of others as well."""

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All rows."""
        ...

    def __setitem__(self, key: bytes, value: bytes) -> None: ...

    def pop(self, key: bytes, default: Any = ...) -> Any:
        """Drop a row, if it is there."""
        ...

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        ...


class Streams:
    """See `ports.Tables`."""

    def __init__(self, rows: Rows, number: int, generation: int) -> None:
        """Become the owner of a partition.

        Args:
            rows: The table.
            number: Of the partition.
            generation: Of the group, when the partition was assigned.
        """
        self._rows = rows
        self._prefix = _DECIDED + b"%d/" % number
        decided: dict[int, int] = {}
        self._found: dict[str, tuple[int, State]] = {}
        self._stale: list[bytes] = []
        latest = 0
        for key, value in list(self._mine(number)):
            owner = int(key[-OWNER_DIGITS:], 16)
            latest = max(latest, owner)
            self._stale.append(key)
            if key.startswith(self._prefix):
                decided[owner] = int(value)
            else:
                state = State.model_validate_json(value)
                if owner >= self._found.get(state.id, (0, state))[0]:
                    self._found[state.id] = owner, state
        self._since = max(decided, default=0)
        self._decided = decided.get(self._since, -1)
        era, known = divmod(latest, 1 << ERA_BITS)
        self._owner = b"%016x" % (((era + (generation <= known)) << ERA_BITS) + generation)

    def states(self) -> Iterable[State]:
        """See `ports.Tables`."""
        return [state for owner, state in self._found.values() if owner >= self._since]

    def put(self, state: State) -> None:
        """See `ports.Tables`."""
        self._rows[self._key(state.id)] = state.model_dump_json(exclude_none=True).encode()

    def drop(self, batch_id: str) -> None:
        """See `ports.Tables`."""
        self._rows.pop(self._key(batch_id), None)

    def drop_stale(self) -> None:
        """See `ports.Tables`."""
        stale, self._stale, self._found = self._stale, [], {}
        for key in stale:
            self._rows.pop(key, None)

    def decided(self) -> int:
        """See `ports.Tables`."""
        return self._decided

    def put_decided(self, offset: int) -> None:
        """See `ports.Tables`."""
        self._rows[self._prefix + self._owner] = b"%d" % offset

    async def delivered(self) -> None:
        """See `ports.Tables`."""
        await self._rows.delivered()

    def _mine(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        partition = b'"partition":%d,' % number
        for key, value in self._rows.items():
            if key.startswith(self._prefix) or (not key.startswith(_DECIDED) and partition in value):
                yield key, value

    def _key(self, batch_id: str) -> bytes:
        return b"%b/%b" % (batch_id.encode(), self._owner)
