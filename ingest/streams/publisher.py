"""What is told of a stream's lines: that they are there, and what becomes of each."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final

from tidemill.ingest.files.packing import INLINE_BYTES_MAX, Origin, Record
from tidemill.ingest.files.validation import LONG_LINE_BYTES, Fault
from tidemill.ingest.ports import RequestPublisher
from tidemill.ingest.quota import Quotas
from tidemill.ingest.streams import packing
from tidemill.ingest.streams.stream import Stream
from tidemill.retrying import retried
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import KIND, Headers, LineRef, encode, lines_headers
from tidemill.schemas.log.messages import Buried, Grown, Opened, Sealed
from tidemill.schemas.log.part import LARGE_PREFIX
from tidemill.schemas.ports import Sender, Store
from tidemill.sealing.records import sealed_outcome
from tidemill.sealing.vault import NoKey, Vault

log = logging.getLogger(__name__)

SLICE_BYTES: Final = 128 * 1024
SLICE_LINES: Final = 256
"""Lines that are checked in a row, one or two milliseconds' worth."""
INTERNAL: Final = Fault("server_error", "The server had an error while checking this line.")

Stretch = tuple[int, list[bytes]]
"""The place of a first line, and the lines."""
Placed = tuple[int, bytes]
"""A line without fault and its place."""
Faulty = tuple[int, bytes, Fault]
"""A line, its place, and what is wrong with it."""


class Publisher:
    """Tells, until the log has it."""

    def __init__(
        self, *, sender: Sender, outlet: RequestPublisher, store: Store, quotas: Quotas, vault: Vault | None = None
    ) -> None:
        self._sender = sender
        self._outlet = outlet
        self._store = store
        self._quotas = quotas
        self._vault = vault

    async def publish(self, flow: Stream, stretches: list[Stretch]) -> None:
        """Check lines, and send them to be run or tell what is wrong with them.

        What results must know first is told first: the batch, then how many lines it has, then the lines.
        """
        if not await self._has_key(flow):
            log.warning("%s is deleted, and its lines came again", flow.state.id)
            return
        good, faults = self._room(flow, *await _checked(flow, stretches))
        if not flow.told:
            await self._tell(Opened(project=flow.state.project, batch=flow.state.batch), flow.state.id)
            flow.told = True
        total = max((first + len(lines) for first, lines in stretches), default=0)
        if not total or not (good or faults):
            return
        await self._tell(Grown(batch_id=flow.state.id, total=total, model=flow.checker.model), flow.state.id)
        for marks, value in packing.failures(flow.state.id, faults):
            told = await sealed_outcome(self._vault, flow.state.id, value, lines_headers(flow.state.id, marks))
            await self._send(topics.OUTCOMES.name, flow.state.id, *told)
        if good:
            await self._run(flow, [await self._placed(flow, place, line) for place, line in good])

    async def buried(self, fact: Buried) -> None:
        """Tell that a record of a batch is a dead letter."""
        await self._tell(fact, fact.batch_id)

    async def _has_key(self, flow: Stream) -> bool:
        """Let the batch have its key, where it is to have one; False where it is deleted."""
        if (vault := self._vault) is None:
            return True
        try:
            await retried(f"the key of {flow.state.id}", lambda: vault.sealing(flow.state.id, flow.state.project))
        except NoKey:
            return False
        return True

    async def sealed(self, fact: Sealed) -> None:
        """Tell that a batch is whole."""
        await self._tell(fact, fact.batch_id)

    def _room(self, flow: Stream, good: list[Placed], faults: list[Faulty]) -> tuple[list[Placed], list[Faulty]]:
        """Leave out the last lines, where the project has more than it may have."""
        project = flow.state.project
        if not (beyond := min(len(good), self._quotas.beyond(project))):
            return good, faults
        fault = self._quotas.refuse(flow.state.id, project, beyond)
        refused = [(place, line, fault) for place, line in good[-beyond:]]
        return good[:-beyond], sorted(faults + refused, key=lambda found: found[0])

    async def _run(self, flow: Stream, placed: list[packing.Placed]) -> None:
        batch = flow.state.batch
        origin = Origin(
            batch_id=batch.id, project=flow.state.project, deadline=batch.expires_at, url=batch.endpoint, key=""
        )
        model = flow.checker.model
        assert model is not None

        async def records() -> AsyncIterator[Record]:
            for record in packing.requests(origin, placed):
                yield record

        await retried(f"publishing lines of {batch.id}", lambda: self._outlet.publish(model, records()))

    async def _placed(self, flow: Stream, place: int, line: bytes) -> packing.Placed:
        """A line that is too large for a record lies in the store as long as the log refers to it."""
        if len(line) <= INLINE_BYTES_MAX:
            return place, line
        key = f"{LARGE_PREFIX}{flow.state.id}/line-{place}"
        await retried(f"storing a line of {flow.state.id}", lambda: self._store.write(key, _once(line)))
        return place, LineRef(key=key, offset=0, length=len(line))

    async def _tell(self, fact: Opened | Grown | Sealed | Buried, batch_id: str) -> None:
        await self._send(topics.OUTCOMES.name, batch_id, encode(fact), [(KIND, fact.kind.encode())])

    async def _send(self, topic: str, key: str, value: bytes, headers: Headers) -> None:
        await retried(f"sending to {topic}", lambda: self._sender.send(topic, key, value, headers=headers))


async def _checked(flow: Stream, stretches: list[Stretch]) -> tuple[list[Placed], list[Faulty]]:
    """Check lines, some at a time; between them other tasks have their turn."""
    good: list[Placed] = []
    faults: list[Faulty] = []
    for slice_ in _sliced((place, line) for first, lines in stretches for place, line in enumerate(lines, first)):
        if any(len(line) > LONG_LINE_BYTES for _, line in slice_):
            await run_half_time(_check, flow, slice_, good, faults)
        else:
            _check(flow, slice_, good, faults)
            await asyncio.sleep(0)
    return good, faults


def _check(flow: Stream, lines: list[Placed], good: list[Placed], faults: list[Faulty]) -> None:
    for place, line in lines:
        try:
            fault = flow.checker.fault(line)
        except Exception as error:  # noqa: BLE001  a line that breaks the check would be met for ever
            log.error("%s: %s in the check", flow.state.id, type(error).__name__)  # noqa: TRY400
            fault = INTERNAL
        if fault is None:
            good.append((place, line))
        else:
            faults.append((place, line, fault))


def _sliced(lines: Iterable[Placed]) -> Iterator[list[Placed]]:
    held: list[Placed] = []
    size = 0
    for place, line in lines:
        held.append((place, line))
        size += len(line)
        if size >= SLICE_BYTES or len(held) >= SLICE_LINES:
            yield held
            held, size = [], 0
    if held:
        yield held


async def _once(line: bytes) -> AsyncIterator[bytes]:
    yield line
