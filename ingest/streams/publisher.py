"""Publishes a stream's valid lines as requests, its invalid lines as error results, and facts about its batch."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import chain, filterfalse, islice
from typing import Final, NamedTuple

from tidemill.ingest.files import error_lines
from tidemill.ingest.files.error_lines import CHANGED, Faulty
from tidemill.ingest.files.packing import (
    INLINE_BYTES_MAX,
    Packer,
    Placed,
    RequestPublisher,
    RequestRecord,
    head_of,
    sliced,
)
from tidemill.ingest.files.validation import LONG_LINE_BYTES
from tidemill.ingest.files.verdict import LineFault
from tidemill.ingest.quota import Quotas
from tidemill.ingest.streams.stream import Published, State, Stream
from tidemill.kafka.partitions.held_records import Unavailable
from tidemill.retrying import reason, retry
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import KIND, Headers, LineRef, encode, lines_headers
from tidemill.schemas.log.messages import DeadLettered, Ended, Grown, Opened, Sealed, Stalled
from tidemill.schemas.log.part import LARGE_PREFIX, schema_key
from tidemill.schemas.ports import Sender, Store, once
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.records import seal_outcome
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import wait_reason

log = logging.getLogger(__name__)

INTERNAL: Final = LineFault("server_error", "The server had an error while checking this line.")


class LineRun(NamedTuple):
    """Lines of one record."""

    first: int
    """The place of the first line."""
    lines: list[bytes]
    fault: LineFault | None = None
    """Why the project may not run any of them."""
    since: int | None = None
    """Unix seconds; none of them was published before."""
    is_judged: bool = False
    """Whether the stream has a verdict on them."""


Valid = tuple[int, bytes]
"""The place of a valid line, and the line."""


@dataclass(slots=True)
class Checked:
    """The outcome of the check of some lines; a check that was cut short goes on behind them."""

    good: list[Valid] = field(default_factory=list)
    faults: list[Faulty] = field(default_factory=list)
    total: int | None = None
    """Lines of the batch up to the last one, once all are checked."""
    since: int | None = None
    """See `LineRun`."""

    def part(self, places: range) -> "Checked":
        """The outcome for the lines at these places alone."""
        good = [valid for valid in self.good if valid[0] in places]
        faults = [faulty for faulty in self.faults if faulty[0] in places]
        return Checked(good, faults, None if self.total is None else places.stop, self.since)


class Publisher:
    """Publishes records, and retries until the log has them."""

    def __init__(
        self,
        *,
        sender: Sender,
        requests: RequestPublisher,
        store: Store,
        quotas: Quotas,
        vault: Vault,
    ) -> None:
        self._sender = sender
        self._requests = requests
        self._store = store
        self._quotas = quotas
        self._vault = vault

    async def check(self, stream: Stream, runs: list[LineRun], checked: Checked) -> bool:
        """Check lines, unless they are checked; False if their batch is deleted.

        The same lines must not be checked twice. Either all of them have a verdict, or it is new, and the caller
        has to keep the stream before it publishes them.

        Raises:
            Unavailable: The key of the batch is unavailable, or the disk; another call with the same `checked`
                checks the other lines.
        """
        if checked.total is not None:
            return True
        if not await self._has_key(stream):
            log.warning("%s is deleted, and its lines came again", stream.state.id)
            return False
        try:
            await _check_all(stream, runs, checked)
        except OSError as error:
            raise Unavailable(f"the ids of its lines cannot be kept: {reason(error)}") from error
        total = max((run.first + len(run.lines) for run in runs), default=0)
        if all(run.is_judged for run in runs):
            checked.good, checked.faults = _as_judged(stream.state, checked.good, checked.faults)
            self._quotas.refuse(stream.state.id, stream.state.project, len(checked.faults))
        else:
            found = _refused(runs, checked.good, checked.faults)
            checked.good, checked.faults = self._within_quota(stream, *found)
            stream.judge(total, (place for place, _, _ in checked.faults))
        checked.since = min((run.since for run in runs if run.since is not None), default=None)
        checked.total = total
        return True

    async def publish(self, stream: Stream, checked: Checked) -> None:
        """Publish valid lines as requests and invalid lines as error results.

        Results needs this order: the batch, its number of lines, the lines.

        Raises:
            Unavailable: The store refused a large line, and nothing was published.
        """
        await self._store_schema(stream)
        placed = [await self._placed(stream, place, line) for place, line in checked.good]
        await self._open(stream)
        if not checked.total or not (placed or checked.faults):
            return
        await self.send_fact(
            Grown(
                batch_id=stream.state.id,
                total=checked.total,
                model=stream.state.model,
                sequence=stream.seq if stream.seq >= 0 else None,
                bytes=stream.size,
                dropped_records=stream.state.dropped or None,
            )
        )
        for marks, value in error_lines.packed(stream.state.id, checked.faults):
            sealed = await seal_outcome(self._vault, stream.state.id, value, lines_headers(stream.state.id, marks))
            await self._send(stream.state.id, *sealed)
        if placed:
            await self._publish_requests(stream, placed, checked.since)

    def is_erased(self, batch_id: str) -> bool:
        """Whether a batch is deleted."""
        return self._vault.is_erased(batch_id)

    async def stalled(self, stream: Stream, fact: Stalled) -> None:
        """Show on a batch why its lines wait."""
        await self._open(stream)
        await self.send_fact(fact)

    async def ended(self, stream: Stream) -> None:
        """Publish that a stream accepts no more lines."""
        await self._open(stream)
        await self.send_fact(Ended(batch_id=stream.state.id))

    async def send_fact(self, fact: Grown | Ended | Sealed | DeadLettered | Stalled) -> None:
        """Append a fact about a batch to the log."""
        await self._send(fact.batch_id, encode(fact), [(KIND, fact.kind.encode())])

    async def _open(self, stream: Stream) -> None:
        if Published.BATCH not in stream.published:
            state = stream.state
            fact = Opened(
                project=state.project, batch=state.batch, output_expires_after=state.output_expires_after
            )
            await self._send(stream.state.id, encode(fact), [(KIND, fact.kind.encode())])
            stream.published.add(Published.BATCH)

    async def _has_key(self, stream: Stream) -> bool:
        """Create the batch's key if its lines are sealed; False if the batch is deleted."""
        if (vault := self._vault) is None:
            return True
        try:
            await vault.sealing_cipher(stream.state.id, stream.state.project)
        except NoKey:
            return False
        except OSError as error:
            raise Unavailable(f"its key is unavailable: {reason(error)}", Reason.KEY) from error
        return True

    def _within_quota(
        self, stream: Stream, good: list[Valid], faults: list[Faulty]
    ) -> tuple[list[Valid], list[Faulty]]:
        """Turn the last lines into faults, if the project exceeds its quota of lines."""
        project = stream.state.project
        if not (beyond := min(len(good), self._quotas.excess(project))):
            return good, faults
        fault = self._quotas.refuse(stream.state.id, project, beyond)
        refused = [(place, line, fault) for place, line in good[-beyond:]]
        return good[:-beyond], sorted(faults + refused, key=lambda found: found[0])

    async def _publish_requests(self, stream: Stream, placed: list[Placed], since: int | None) -> None:
        batch, model = stream.state.batch, stream.state.model
        head = head_of(batch, stream.state.project, created=since, validated=batch.tidemill.validated)
        assert model is not None

        async def records() -> AsyncIterator[RequestRecord]:
            packer = Packer(head, [model])
            for record in chain(packer.pack(placed), packer.finish()):
                yield record

        await retry(f"publishing lines of {batch.id}", lambda: self._requests.publish(records()))

    async def _placed(self, stream: Stream, place: int, line: bytes) -> Placed:
        """Write a line that is too large for a record to the store, where it stays while the log refers to it."""
        if len(line) <= INLINE_BYTES_MAX:
            return place, line
        key = f"{LARGE_PREFIX}{stream.state.id}/line-{place}"
        try:
            await self._store.write(key, once(line))
        except OSError as error:
            raise Unavailable(f"a large line cannot be stored: {reason(error)}", wait_reason(error)) from error
        return place, LineRef(key=key, offset=0, length=len(line))

    async def _store_schema(self, stream: Stream) -> None:
        """Write the JSON Schema of the answers to the store, before the first line is published."""
        if (schema := stream.state.answer_schema) is None or Published.SCHEMA in stream.published:
            return
        try:
            await self._store.write(schema_key(stream.state.id), once(schema.encode()))
        except OSError as error:
            raise Unavailable(f"its schema cannot be stored: {reason(error)}", wait_reason(error)) from error
        stream.published.add(Published.SCHEMA)

    async def _send(self, batch_id: str, value: bytes, headers: Headers) -> None:
        topic = topics.OUTCOMES.name
        await retry(f"sending to {topic}", lambda: self._sender.send(topic, batch_id, value, headers=headers))


async def _check_all(stream: Stream, runs: list[LineRun], checked: Checked) -> None:
    """Check lines in slices; other tasks run between two slices."""
    numbered = ((place, line) for run in runs for place, line in enumerate(run.lines, run.first))
    left = islice(numbered, len(checked.good) + len(checked.faults), None)
    for slice_ in sliced(left, lambda valid: len(valid[1])):
        if any(len(line) > LONG_LINE_BYTES for _, line in slice_):
            await run_half_time(_check, stream, slice_, checked)
        else:
            _check(stream, slice_, checked)
            await asyncio.sleep(0)


def _refused(runs: list[LineRun], good: list[Valid], faults: list[Faulty]) -> tuple[list[Valid], list[Faulty]]:
    """Turn the valid lines of refused records into faults."""
    refusals = {
        place: run.fault for run in runs if run.fault for place in range(run.first, run.first + len(run.lines))
    }
    if not refusals:
        return good, faults
    refused = [(place, line, fault) for place, line in good if (fault := refusals.get(place)) is not None]
    taken = [valid for valid in good if valid[0] not in refusals]
    return taken, sorted(faults + refused, key=lambda found: found[0])


def _as_judged(state: State, good: list[Valid], faults: list[Faulty]) -> tuple[list[Valid], list[Faulty]]:
    """Let lines keep their verdict, whatever the present models and limits are."""
    bits, kept = int(state.refused, 16), state.kept_lines

    def is_refused(found: Valid | Faulty) -> bool:
        return bool(bits >> (found[0] - kept) & 1)

    valid = [*filterfalse(is_refused, good), *(found[:2] for found in filterfalse(is_refused, faults))]
    refused = [*filter(is_refused, faults), *((*found, CHANGED) for found in filter(is_refused, good))]
    return sorted(valid), sorted(refused, key=lambda found: found[0])


def _check(stream: Stream, lines: list[Valid], checked: Checked) -> None:
    for place, line in lines:
        try:
            fault = stream.checker.fault(line)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  the record would be redelivered for ever
            log.error("%s: the check of a line raised %s", stream.state.id, type(error).__name__)  # noqa: TRY400
            fault = INTERNAL
        if fault is None:
            checked.good.append((place, line))
        else:
            checked.faults.append((place, line, fault))
