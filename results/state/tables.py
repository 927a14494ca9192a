"""The state tables of one partition: its batches and their bitmaps, each under the name of the owner who wrote it.

| table | key | value |
|---|---|---|
| states | batch id, `/` and an owner | an active batch |
| states | `over/`, batch id, `/` and an owner | a batch that is over |
| states | `parts/`, batch id, `/`, an owner, `/` and a number | some parts of an active batch |
| chunks | batch id, `/`, an owner, `/` and a number | number of parts, a chunk of the bitmap, its lines' sums |

Owners, and the order of their rows: `src/tidemill/kafka/partitions/owned_table.py`.

A take-over reads the active batches alone. A batch that is over stays in the table as long as the log may bring
another fact about it (`results/expiry.py`).
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from tidemill.kafka.partitions.owned_table import OwnedTable, Row, Table
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.reducer import State
from tidemill.schemas.ids import BATCH_PREFIX
from tidemill.schemas.log.part import PartRef

log = logging.getLogger(__name__)

OPEN: Final = BATCH_PREFIX.encode()
OVER: Final = b"over/"
PARTS: Final = b"parts/"
GROUP_PARTS: Final = 512
"""Parts in one row: a slow or large batch has more than fit into the row of its state."""
Group = Annotated[tuple[PartRef, ...], Field(max_length=GROUP_PARTS)]
_group: Final[TypeAdapter[tuple[PartRef, ...]]] = TypeAdapter(Group)
_PARTS_BYTES: Final = 4
_BEHIND_SLASH: Final = b"0"


class TornError(Exception):
    """The tables were read while a former owner still wrote them; another read helps."""


class Tables:
    """The rows of one partition; a write belongs to the current event."""

    def __init__(self, states: Table, chunks: Table) -> None:
        self._owned = OwnedTable(states)
        self._states = states
        self._chunks = chunks
        self._kept_parts: dict[str, int] = {}
        """How many parts of each batch this owner has written."""
        self._stale: list[tuple[Table, bytes]] = []
        self._over: list[tuple[bytes, bytes]] = []
        """Rows, as this owner writes them, of batches that are over but have stale rows too."""
        self._has_damaged = False
        """Whether a row could not be read, so that a later version may still adopt it."""

    @property
    def owner(self) -> int:
        """See `OwnedTable.owner`."""
        return self._owned.owner

    async def take_over(self, generation: int) -> None:
        """See `OwnedTable.take_over`."""
        self._kept_parts.clear()
        await self._owned.take_over(generation)

    def open(self) -> Iterator[State]:
        """The active batches, as their latest owner wrote them."""
        keys = [key for key, _ in self._states.scan(OPEN)]
        self._stale += [(self._states, key) for key in keys]
        for batch_id in dict.fromkeys(key.partition(b"/")[0] for key in keys):
            row = self._latest(batch_id)
            if row is not None and row.prefix != OVER and row.owner < self._owned.adopted:
                # Its end was forgotten, or the batch deleted, while this local table was not in use.
                row = None
            state = None
            if row is not None and row.prefix != OVER and (state := self._readable(batch_id, row)) is None:
                self._has_damaged = True
                self._stale = [(table, key) for table, key in self._stale if not key.startswith(batch_id)]
                continue
            for table, prefix in ((self._states, PARTS + batch_id), (self._chunks, batch_id)):
                self._stale += [(table, key) for key, _ in table.scan(prefix + b"/")]
            if state is not None:
                yield state
            elif row is not None:
                self._over.append((OVER + self._owned.key(batch_id), row.value))

    def state(self, batch_id: str) -> State | None:
        """A batch, over or not."""
        key = batch_id.encode()
        return None if (row := self._latest(key)) is None else self._whole(key, row)

    def over(self, after: str, most: int) -> tuple[list[State], str]:
        """The next batches that are over, in order of their ids.

        Args:
            after: What the previous call returned; empty at first.
            most: The number of batches, with those whose rows are damaged.

        Returns:
            The batches, and the id behind which to go on; empty after the last one.
        """
        found: dict[bytes, bytes] = {}
        for key, value in self._states.scan(OVER, after=OVER + after.encode() + (_BEHIND_SLASH if after else b"")):
            batch_id = key.split(b"/")[1]
            if len(found) == most and batch_id not in found:
                break
            found[batch_id] = value
        states = [state for key, value in found.items() if (state := _read(key, value)) is not None]
        return states, next(reversed(found)).decode() if len(found) == most else ""

    def put_state(self, state: State) -> None:
        """Keep a batch.

        Raises:
            RecordTooLarge: The state is too large; the table is unchanged.
        """
        key = self._owned.key(state.id.encode())
        value = state.model_dump_json(exclude_none=True).encode()
        if state.is_over:
            self._states.put(OVER + key, value)
            self._drop(self._states, b"%b%b/" % (PARTS, key))
            # The active state last: after an earlier crash the next take-over still sees its row.
            self._states.delete(key)
            self._kept_parts.pop(state.id, None)
        else:
            # The parts before the state: a closed batch is merged from the parts in the table.
            for number in range(self._kept_parts.get(state.id, 0) // GROUP_PARTS, _groups(state)):
                group = state.parts[number * GROUP_PARTS : (number + 1) * GROUP_PARTS]
                self._states.put(b"%b%b/%08d" % (PARTS, key, number), _group.dump_json(group))
            self._kept_parts[state.id] = len(state.parts)
            self._states.put(key, value)

    def chunks(self, state: State) -> Iterator[tuple[int, bytes]]:
        """The chunks of a batch's bitmap, with their sums, by the owner who wrote its state: number and row.

        Raises:
            TornError: A chunk is newer than the state.
        """
        if (row := self._latest(state.id.encode())) is None:
            return
        for number in range(state.chunks):
            if (value := self._chunks.get(_chunk_key(state.id, row.owner, number))) is not None:
                if int.from_bytes(value[:_PARTS_BYTES]) > len(state.parts):
                    raise TornError(f"the bitmap of {state.id} is ahead of its state")
                yield number, value[_PARTS_BYTES:]

    def forget(self, state: State) -> None:
        """Delete all rows of a batch that is over."""
        key = state.id.encode()
        self._drop(self._chunks, key + b"/")
        for prefix in (PARTS, b"", OVER):
            self._drop(self._states, b"%b%b/" % (prefix, key))

    def erase(self, state: State) -> None:
        """Keep a deleted batch without its bitmap. The row stays, or a late fact could create the batch again."""
        self.put_state(state)
        key = state.id.encode()
        self._drop(self._chunks, key + b"/")
        # Overwritten, not deleted: the changelog may have rows that are gone from the local table.
        value = state.model_dump_json(exclude_none=True).encode()
        for row in [row for row, _ in self._states.scan(b"%b%b/" % (OVER, key))]:
            self._states.put(row, value)

    async def adopt(self, *batches: ActiveBatch) -> None:
        """Write batches of former owners as this owner's: first the bitmaps, then the states.

        So if the table has a state of this owner, it has the bitmap, too, and rows of former owners can be
        deleted.
        """
        for active in batches:
            active.bitmap.touch_all()
            self._put_chunks(active, self._touched(active))
        await self.delivered()
        for active in batches:
            self.put_state(active.state)
        await self.delivered()
        for active in batches:
            active.kept = active.state

    def drop_stale(self) -> None:
        """Delete the rows of former owners, once all active batches are adopted.

        Before that, the ends of batches are written again: perhaps only the local table has them.
        """
        (stale, self._stale), (over, self._over) = (self._stale, []), (self._over, [])
        for key, value in over:
            self._states.put(key, value)
        if not self._has_damaged:
            self._owned.finish_adoption()
        for table, key in stale:
            table.delete(key)

    async def keep(self, *batches: ActiveBatch) -> None:
        """Write batches: first their states, and once the changelog has these, the chunks of their bitmaps.

        The two tables are two files, and a power cut may keep only one of them. A bitmap must not have lines that
        no part has, so it is not written while lines wait in a buffer; for a closed batch the parts are enough.
        """
        taken: list[tuple[ActiveBatch, list[tuple[int, bytes]]]] = []
        try:
            await self._keep(batches, taken)
        except BaseException:
            for active, chunks in taken:
                active.bitmap.touch(number for number, _ in chunks)
            raise
        for active in batches:
            active.kept = active.state

    async def _keep(
        self, batches: Iterable[ActiveBatch], taken: list[tuple[ActiveBatch, list[tuple[int, bytes]]]]
    ) -> None:
        for active in batches:
            chunks = [] if active.waiting_bytes or active.state.closed else self._touched(active)
            taken.append((active, chunks))
            self.put_state(active.state)
        await self.delivered()
        for active, chunks in taken:
            self._put_chunks(active, chunks)
        await self.delivered()

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        await self._states.delivered()
        await self._chunks.delivered()

    def _latest(self, batch_id: bytes) -> Row | None:
        """The valid row of a batch; of two rows of one owner, the one under `over/` is later."""
        return self._owned.latest(batch_id, b"", OVER)

    def _whole(self, batch_id: bytes, row: Row) -> State:
        """A batch with its parts, by the owner of the row."""
        state = State.model_validate_json(row.value)
        if row.prefix == OVER:
            return state
        groups = self._states.scan(b"%b%b/%b/" % (PARTS, batch_id, row.owner))
        parts = tuple(part for _, value in groups for part in _group.validate_json(value))
        return state.model_copy(update={"parts": parts}) if parts else state

    def _readable(self, batch_id: bytes, row: Row) -> State | None:
        """A batch with its parts; None if a row of it is damaged, so that the other batches go on."""
        try:
            return self._whole(batch_id, row)
        except ValidationError as error:
            _tell(batch_id, error)
            return None

    def _touched(self, active: ActiveBatch) -> list[tuple[int, bytes]]:
        """Take the changed chunks, and raise the state's number of chunks."""
        if chunks := active.bitmap.take_touched():
            known = max(active.state.chunks, chunks[-1][0] + 1)
            active.state = active.state.model_copy(update={"chunks": known})
        return chunks

    def _put_chunks(self, active: ActiveBatch, chunks: list[tuple[int, bytes]]) -> None:
        parts = len(active.state.parts).to_bytes(_PARTS_BYTES)
        for number, chunk in chunks:
            row = parts + chunk + active.state.sums.encoded(number)
            self._chunks.put(_chunk_key(active.state.id, self._owned.suffix, number), row)

    @staticmethod
    def _drop(table: Table, prefix: bytes) -> None:
        for key in [key for key, _ in table.scan(prefix)]:
            table.delete(key)


def _read(key: bytes, value: bytes) -> State | None:
    """A batch; None if the row is damaged, so that the other batches go on."""
    try:
        return State.model_validate_json(value)
    except ValidationError as error:
        _tell(key, error)
        return None


def _tell(key: bytes, error: ValidationError) -> None:
    fault = error.errors(include_url=False, include_input=False)[0]
    log.error("%r in the table is not a batch: %s: %s", key, fault["loc"], fault["msg"])


def _groups(state: State) -> int:
    return -(-len(state.parts) // GROUP_PARTS)


def _chunk_key(batch_id: str, owner: bytes, number: int) -> bytes:
    return b"%b/%b/%d" % (batch_id.encode(), owner, number)
