"""The state tables of one partition: its batches and their tallies.

| table | key | value |
|---|---|---|
| states | batch id | a batch that is not over |
| states | `over/` and batch id | one that is |
| states | `parts/`, batch id, `/` and a number | some parts of one that is not over |
| chunks | batch id, `/` and a number | a chunk of its tally |

A take-over reads what is at work, and that alone, however many batches there ever were. What is over stays for as
long as the log may bring a fact about it once more (`forgetting.py`).
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from tidemill.results.fold import State
from tidemill.results.live import Live
from tidemill.results.ports import Table
from tidemill.schemas.ids import BATCH_PREFIX
from tidemill.schemas.part import PartRef

log = logging.getLogger(__name__)

OPEN: Final = BATCH_PREFIX.encode()
OVER: Final = b"over/"
PARTS: Final = b"parts/"
GROUP_PARTS: Final = 512
"""Parts of one record: a batch that is slow, or large, has more than fit into one with its state."""
Group = Annotated[tuple[PartRef, ...], Field(max_length=GROUP_PARTS)]
_group: Final[TypeAdapter[tuple[PartRef, ...]]] = TypeAdapter(Group)


class Tables:
    """A write belongs to the event that is being handled; reading is free."""

    def __init__(self, states: Table, chunks: Table) -> None:
        self._states = states
        self._chunks = chunks
        self._kept_parts: dict[str, int] = {}
        """How many parts of a batch are in the table, as far as they were written here."""

    def open(self) -> Iterator[State]:
        """The batches that are not over. It ends what a crash left half done, so it belongs to an event too."""
        for key, value in list(self._states.scan(OPEN)):
            if self._states.get(OVER + key) is not None:
                self._close(key)
            elif (state := _read(key, value)) is None:
                continue
            elif state.is_over:
                # An earlier version left it here.
                self.put_state(state)
            else:
                yield self._whole(state)

    def state(self, batch_id: str) -> State | None:
        """A batch, over or not."""
        key = batch_id.encode()
        if (value := self._states.get(OVER + key)) is not None:
            return State.model_validate_json(value)
        value = self._states.get(key)
        return None if value is None else self._whole(State.model_validate_json(value))

    def over(self, after: str, most: int) -> list[State]:
        """The next batches that are over, in order of their ids.

        Args:
            after: The id to go on from; empty at the beginning.
            most: How many at the most; fewer come at the end only.
        """
        found: list[State] = []
        for key, value in self._states.scan(OVER, after=OVER + after.encode()):
            if len(found) == most:
                break
            if key != OVER + after.encode():
                found.append(State.model_validate_json(value))
        return found

    def put_state(self, state: State) -> None:
        """Keep a batch.

        Raises:
            RecordTooLarge: It is, and what the table has is as it was.
        """
        key = state.id.encode()
        value = state.model_dump_json(exclude_none=True).encode()
        if state.is_over:
            self._states.put(OVER + key, value)
            self._close(key)
        else:
            # The parts before the state: one that is closed is merged from them.
            for number in range(self._kept_parts.get(state.id, 0) // GROUP_PARTS, _groups(state)):
                group = state.parts[number * GROUP_PARTS : (number + 1) * GROUP_PARTS]
                self._states.put(_group_key(key, number), _group.dump_json(group))
            self._kept_parts[state.id] = len(state.parts)
            self._states.put(key, value)

    def _whole(self, state: State) -> State:
        """A batch with its parts."""
        groups = self._states.scan(_group_prefix(state.id.encode()))
        parts = tuple(part for _, value in groups for part in _group.validate_json(value))
        return state.model_copy(update={"parts": parts}) if parts else state

    def _close(self, key: bytes) -> None:
        """Drop what a batch was while it was not over: its state last, so that a crash leaves nothing unseen."""
        for group, _ in list(self._states.scan(_group_prefix(key))):
            self._states.delete(group)
        self._states.delete(key)
        self._kept_parts.pop(key.decode(), None)

    def chunks(self, batch_id: str, count: int) -> Iterable[tuple[int, bytes]]:
        """The first chunks of a batch's tally that there are, of `count`: number and content."""
        for number in range(count):
            if (chunk := self._chunks.get(_chunk_key(batch_id, number))) is not None:
                yield number, chunk

    def forget(self, state: State) -> None:
        """Drop a batch that is over."""
        self._drop_chunks(state)
        self._states.delete(OVER + state.id.encode())

    def erase(self, state: State) -> None:
        """Keep a deleted batch, without its tally; at no point is there nothing of it, or it could begin anew."""
        self.put_state(state)
        self._drop_chunks(state)

    async def keep(self, *lives: Live) -> None:
        """Write batches: first their states, and only when the changelog has them the chunks of their tallies.

        The two are files of their own, of which a power cut may keep the one and lose the other. A tally is kept
        only while no line waits on a shelf, since it may not know more than the parts; and no more once the batch
        is closed, since the parts say what was done.
        """
        taken: list[tuple[Live, list[tuple[int, bytes]]]] = []
        try:
            await self._keep(lives, taken)
        except BaseException:
            for live, chunks in taken:
                live.tally.touch(number for number, _ in chunks)
            raise
        for live in lives:
            live.kept = live.state

    async def _keep(self, lives: Iterable[Live], taken: list[tuple[Live, list[tuple[int, bytes]]]]) -> None:
        for live in lives:
            chunks = [] if live.waiting_bytes or live.state.closed else live.tally.take_touched()
            if chunks:
                known = max(live.state.chunks, chunks[-1][0] + 1)
                live.state = live.state.model_copy(update={"chunks": known})
            taken.append((live, chunks))
            self.put_state(live.state)
        await self.delivered()
        for live, chunks in taken:
            for number, chunk in chunks:
                self._chunks.put(_chunk_key(live.state.id, number), chunk)
        await self.delivered()

    def _drop_chunks(self, state: State) -> None:
        for number in range(state.chunks):
            self._chunks.delete(_chunk_key(state.id, number))

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        await self._states.delivered()
        await self._chunks.delivered()


def _read(key: bytes, value: bytes) -> State | None:
    """A batch; None where it is none, which holds up no other."""
    try:
        return State.model_validate_json(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        log.error("%r in the table is no batch: %s: %s", key, fault["loc"], fault["msg"])  # noqa: TRY400
        return None


def _groups(state: State) -> int:
    return -(-len(state.parts) // GROUP_PARTS)


def _group_prefix(key: bytes) -> bytes:
    return b"%b%b/" % (PARTS, key)


def _group_key(key: bytes, number: int) -> bytes:
    return b"%b%08d" % (_group_prefix(key), number)


def _chunk_key(batch_id: str, number: int) -> bytes:
    return b"%b/%d" % (batch_id.encode(), number)
