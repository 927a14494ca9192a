"""The active batches of a partition in memory, and their snapshots from before the current record."""

from collections.abc import Iterator

from pydantic import ValidationError

from tidemill.results.state.active_batch import ActiveBatch, Snapshot
from tidemill.results.state.line_bitmap import LineBitmap, LineSums
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls
from tidemill.results.state.tables import Tables
from tidemill.schemas.ports import Monotonic


class ActiveBatches:
    """Loads a batch when its first record comes, and restores batches after a record that failed."""

    def __init__(self, number: int, tables: Tables, monotonic: Monotonic) -> None:
        self.number = number
        """The partition's number in `outcomes` and `commands`."""
        self._tables = tables
        self._monotonic = monotonic
        self._active: dict[str, ActiveBatch] = {}
        self._before: dict[str, tuple[ActiveBatch, Snapshot]] = {}
        """The batches that the current record has touched, and their earlier states."""
        self._new: set[str] = set()
        """Those among them that were unknown before."""

    def __iter__(self) -> Iterator[ActiveBatch]:
        return iter(list(self._active.values()))

    def __len__(self) -> int:
        return len(self._active)

    def find(self, batch_id: str) -> ActiveBatch | None:
        """A batch, if it is active."""
        return self._active.get(batch_id)

    def get(self, batch_id: str) -> ActiveBatch:
        """A batch for the current record: active, from the tables, or new."""
        if (active := self._active.get(batch_id)) is None:
            if (state := self._tables.state(batch_id)) is None:
                state = State(id=batch_id, partition=self.number)
                self._new.add(batch_id)
            active = self.load(state)
        return self.touch(active)

    def touch(self, active: ActiveBatch) -> ActiveBatch:
        """Take a snapshot of a batch before the current record first changes it."""
        if active.state.id not in self._before:
            self._before[active.state.id] = active, active.snapshot()
        return active

    def load(self, state: State) -> ActiveBatch:
        """Make a batch active, unless it is over."""
        now = self._monotonic()
        chunks = [] if state.is_over else list(self._tables.chunks(state))
        bitmap = LineBitmap.of(chunks)
        active = ActiveBatch(
            state=state.model_copy(update={"sums": LineSums.of(chunks)}),
            bitmap=bitmap,
            published_at=now,
            ending_since=None if state.ending is None else now,
            stalls=Stalls(moved_at=now, moved=(state.batch and state.batch.status, bitmap.done)),
        )
        if not state.is_over:
            self._active[state.id] = active
        return active

    def drop(self, batch_id: str) -> None:
        """Forget a batch that is over."""
        self._active.pop(batch_id, None)

    def clear(self) -> None:
        """Forget all batches."""
        self._active.clear()

    def is_over(self, batch_id: str) -> bool:
        """Whether a batch is over or deleted; not if its row cannot be read."""
        if batch_id in self._active:
            return False
        try:
            state = self._tables.state(batch_id)
        except ValidationError:
            return False
        return state is not None and state.is_over

    def is_open(self, batch_id: str) -> bool:
        """Whether a batch is known and not over, or its row cannot be read: a later version may go on with it."""
        active = self._active.get(batch_id)
        try:
            state = self._tables.state(batch_id) if active is None else active.state
        except ValidationError:
            return True
        return state is not None and not state.is_over

    def takes_lines(self, batch_id: str) -> bool:
        """Whether result lines of a batch still count."""
        active = self._active.get(batch_id)
        state = self._tables.state(batch_id) if active is None else active.state
        return state is None or state.takes_lines

    def begin(self) -> None:
        """Begin a record."""
        self._before.clear()
        self._new.clear()

    def undo(self) -> list[ActiveBatch]:
        """Restore the batches that the current record has touched, and return them; unknown ones are forgotten."""
        restored = []
        for active, snapshot in self._before.values():
            active.restore(snapshot)
            restored.append(active)
            if active.state.id in self._new:
                self._active.pop(active.state.id, None)
            elif not active.state.is_over:
                self._active[active.state.id] = active
        self.begin()
        return restored
