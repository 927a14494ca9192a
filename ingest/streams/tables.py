"""Reads and writes the table of streams, for the owner of one partition of the intake.

| key | value |
|---|---|
| batch id, `/` and an owner | a stream that is not a complete batch yet |
| `decided/` and an owner | the offset up to which every record is decided on, and the identity of the topic |

Owners: `kafka/partitions/owned_table.py`. An owner first writes all streams under its own number, then its row
`decided/`. Readers ignore rows of owners before the latest one with a row `decided/`.
"""

import logging
from typing import Final

from tidemill.ingest.streams.stream import State
from tidemill.kafka.partitions.owned_table import OwnedTable, Table, owner_of
from tidemill.schemas.ids import BATCH_PREFIX, is_same_topic
from tidemill.schemas.log.topics import INTAKE

_DECIDED: Final = b"decided"

log = logging.getLogger(__name__)


class Streams:
    """The streams of one partition; a write belongs to the current record.

    Args:
        table: The partition's share of the table.
        generation: Generation of the consumer group when the partition was assigned.
        topic: The identity of the intake topic (`kafka.connection.topic_identities`).
    """

    def __init__(self, table: Table, generation: int, topic: str = "") -> None:
        self._table = table
        self._generation = generation
        self._topic = topic
        self._owned = OwnedTable(table)
        self._stale: list[bytes] = []

    async def take_over(self) -> tuple[int, list[State]]:
        """Become the owner; called before all else.

        Returns:
            The offset up to which every record was decided on, -1 if none was; and the streams of previous owners.
            If the topic was created anew since, the offset is -1, and no stream has a journal or accepts lines.
        """
        await self._owned.take_over(self._generation)
        decided = list(self._table.scan(_DECIDED))
        since, offset, is_known = b"", -1, True
        if (latest := self._owned.latest(_DECIDED)) is not None:
            since = latest.owner
            decided_on, _, topic = latest.value.partition(b" ")
            is_known = not topic or is_same_topic(topic.decode(), self._topic)
            offset = int(decided_on) if is_known else -1
        rows = list(self._table.scan(BATCH_PREFIX.encode()))
        found: dict[bytes, tuple[bytes, bytes]] = {}
        for key, value in rows:
            name, owner = key.partition(b"/")[0], owner_of(key)
            if owner >= max(since, found.get(name, (b"",))[0]):
                found[name] = owner, value
        self._stale = [key for key, _ in decided + rows]
        states = [State.model_validate_json(value) for _, value in found.values()]
        if not is_known:
            log.error("%s was created anew: its former records are gone, streams end without them", INTAKE.name)
            states = [state.until(-1).model_copy(update={"ended": True}) for state in states]
        return offset, states

    def put(self, state: State) -> None:
        """Keep a stream."""
        self._table.put(self._key(state.id), state.model_dump_json(exclude_none=True).encode())

    def drop(self, batch_id: str) -> None:
        """Delete a stream; `put_decided` has to follow."""
        self._table.delete(self._key(batch_id))

    def drop_stale(self) -> None:
        """Delete the rows of previous owners, once this owner has written its own."""
        stale, self._stale = self._stale, []
        for key in stale:
            self._table.delete(key)

    def put_decided(self, offset: int) -> None:
        """Keep the offset up to which every record is decided on."""
        self._table.put(self._owned.key(_DECIDED), b"%d %b" % (offset, self._topic.encode()))

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        await self._table.delivered()

    def _key(self, batch_id: str) -> bytes:
        return self._owned.key(batch_id.encode())
