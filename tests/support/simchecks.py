"""Checks the log and the store of a simulated run against its requests."""

import hashlib
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from support.facts import model_of, original_of
from support.simlog import Place
from support.simstages import BATCHES, OUTCOMES, REQUESTS, SECRETS
from support.simulated import leads_to
from support.simupstream import REFUSED_EVERY

from tidemill.api.view import overlay
from tidemill.schemas.log import codec, topics
from tidemill.schemas.resources.batch import Batch, Status

PARTITIONS = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch of a run."""

    batch: Batch
    lines: int
    cancel_at: float | None


def copied(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that have the answer to an equal one."""
    return [line for line in lines if is_copy(line)]


def is_copy(line: dict[str, Any]) -> bool:
    """Whether a line has the answer to an equal one."""
    return "copy_of" in line.get("tidemill", {})


def check_waiting(batch: Batch) -> None:
    """Check that no ended batch is at risk or says that lines wait; an expired one says why some never ran."""
    if batch.status.is_terminal:
        assert batch.tidemill.at_risk is None
        waits, most = batch.tidemill.waiting, batch.request_counts.pending
        assert all(wait.lines <= most for wait in waits) if batch.status is Status.EXPIRED else not waits, batch


class Seen:
    """The visible outcome of a run (`simworld.SimulatedWay`)."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def shown(self, batch_id: str) -> list[Batch]:
        """The records that an api process shows of a batch (`api/view/view.py`), until its deletion."""
        return [batch for _, batch in self._shown(batch_id)]

    def _shown(self, batch_id: str) -> list[tuple[int, Batch]]:
        """See `shown`; each with the number of its owner."""
        records = [record for record in self._world.log.records[Place(BATCHES, 0)] if record.key == batch_id]
        shown: list[tuple[int, Batch]] = []
        for record in itertools.takewhile(lambda record: record.value is not None, records):
            published = codec.decode_batch(record.value)
            owner, before = shown[-1] if shown else (0, None)
            if published.owner >= owner:
                shown.append((published.owner, overlay.merge(before, published.batch)))
        return shown

    def _owners(self, batch_id: str) -> list[int]:
        """The numbers of the owners that published a batch, a number for each record."""
        records = self._world.log.records[Place(BATCHES, 0)]
        values = [record.value for record in records if record.key == batch_id and record.value is not None]
        return [codec.decode_batch(value).owner for value in values]

    def over(self) -> set[str]:
        """The batches that are over."""
        over: dict[str, int] = {}
        latest: dict[str, int] = {}
        for record in self._world.log.records[Place(BATCHES, 0)]:
            if record.value is not None:
                published = codec.decode_batch(record.value)
                latest[published.batch.id] = max(published.owner, latest.get(published.batch.id, 0))
                if published.batch.status.is_terminal:
                    over[published.batch.id] = max(published.owner, over.get(published.batch.id, 0))
        # A former owner of the batch may publish an end that does not count.
        return {batch_id for batch_id, owner in over.items() if owner == latest[batch_id]}

    def check(self) -> None:
        """Check everything; an `AssertionError` names the fault."""
        for place in self._world.log.places(REQUESTS, OUTCOMES):
            for record in self._world.log.records[place]:
                assert self._world.wrapper is None or b"custom_id" not in record.value
        self._check_at_work()
        for job in self._world.jobs:
            self._check_status(job)
            if job.batch.id in self._world.deleted:
                self._check_deleted(job.batch.id)
                continue
            self._check_lines(job)
        for place, calls in self._world.calls.items():
            # If clocks differ, results from before a restart may not be found (docs/decisions/0012).
            assert self._world.steps_clocks or calls <= 1 + self._world.repeats_max[place], (
                f"{calls} calls of {place}, {self._world.repeats_max[place]} had no result on the log at kills"
            )

    def _check_at_work(self) -> None:
        """Check that the batches at work keep within their limit, and start in the order of the queue."""
        if (most := self._world.at_work_max) is None:
            return
        at_work: dict[str, None] = {}
        started: dict[str, None] = {}
        for record in self._world.log.records[Place(BATCHES, 0)]:
            batch = None if record.value is None else codec.decode_batch(record.value).batch
            if batch is None or batch.status.is_terminal:
                at_work.pop(record.key, None)
            elif batch.is_validated and (record.key in at_work or record.key not in started):
                at_work[record.key] = started[record.key] = None
            # An isolated process may report the end of a batch that goes on.
            assert self._world.cuts or len(at_work) <= most, (record.offset, list(at_work))
        queued = [record.key for record in self._world.log.records[Place(topics.QUEUE.name, 0)]]
        if most == 1 and not self._world.cuts:
            assert list(started) == sorted(started, key=queued.index)

    def _check_status(self, job: Job) -> None:
        """Invariants 2 and 3."""
        shown = self.shown(job.batch.id)
        closers: list[int] = []
        owners = self._owners(job.batch.id)
        was_isolated = any(owner < max(owners[: place + 1]) for place, owner in enumerate(owners))
        for (owner, before), (next_owner, after) in itertools.pairwise(self._shown(job.batch.id)):
            if before.status is Status.FINALIZING:
                closers.append(owner)
            # An isolated owner may close a batch; its successor does not know that, and cancels the batch.
            is_undone = self._world.cuts and closers and closers[0] < next_owner
            assert (
                after.status is before.status
                or leads_to(before.status, after.status)
                or (is_undone and (before.status, after.status) == (Status.FINALIZING, Status.CANCELLING))
            ), (before, after)
            # A cancelled batch gives up what its owner cannot read, also if an isolated owner has counted it.
            if not (was_isolated and self._world.refusals and after.status is Status.CANCELLED):
                assert after.request_counts.completed >= before.request_counts.completed
                assert after.request_counts.failed >= before.request_counts.failed
        for batch in shown:
            check_waiting(batch)
            has_files = batch.output_file_id is not None or batch.error_file_id is not None
            assert has_files == (batch.status.is_terminal and batch.request_counts.total > 0), batch

    def _check_deleted(self, batch_id: str) -> None:
        """A deleted batch has no record and no files, and stays deleted."""
        records = [record for record in self._world.log.records[Place(BATCHES, 0)] if record.key == batch_id]
        present = [record.value is not None for record in records]
        # Later records of a former owner are not shown (`api/view/batch_tables.py`).
        assert self._world.cuts or present == sorted(present, reverse=True), "a deleted batch was published again"
        assert False in present
        shown = self.shown(batch_id)[-1]
        named = {file.key for file in self._files() if file.file.id in {shown.output_file_id, shown.error_file_id}}
        # A request of a killed process may take effect after the deletion: no record names its object.
        assert self._world.cuts or not named & self._world.objects.keys()
        states = [self._world.changelogs["states", number] for number in range(PARTITIONS)]
        rows = [item for found in states for item in found.items() if batch_id.encode() in item[0]]
        key, value = max(rows, key=lambda row: row[0].rpartition(b"/")[2])
        assert key.startswith(b"over/")
        assert b"deleted_at" in value
        last = {record.key: record.value for record in self._world.log.records[Place(SECRETS, 0)]}
        assert last[batch_id] is not None
        assert all(value is None for key, value in last.items() if key.startswith(f"{batch_id}/"))

    def _check_lines(self, job: Job) -> None:
        """Invariants 1 and 4."""
        batch = self.shown(job.batch.id)[-1]
        expected = {Status.COMPLETED}
        if job.cancel_at is not None:
            expected.add(Status.CANCELLED)
        if batch.expires_at < batch.created_at + 86_400:
            expected.add(Status.EXPIRED)
        assert batch.status in expected, batch
        # An isolated process may have removed the parts of a batch that it considered over.
        assert self._world.cuts or not batch.tidemill.recovered, batch
        output, errors = self._file(batch, "output"), self._file(batch, "errors")
        total = batch.request_counts.total
        assert total == job.lines
        assert sorted(line["custom_id"] for line in output + errors) == sorted(f"id-{n}" for n in range(total))
        for found in (output, errors):
            places = [int(line["custom_id"][3:]) for line in found]
            assert places == sorted(places)
        for line in output:
            body = line["response"]["body"]
            text = f"{batch.id} {self._asked(batch, line)}"
            assert body["choices" if "choices" in body else "data"] == [{"index": 0, "text": text}]
        for line in output + errors:
            own = int(line["custom_id"][3:])
            asked = self._asked(batch, line) if line["response"] else own
            told = line.get("tidemill", {})
            assert told.get("copy_of") == (None if asked == own else f"id-{asked}")
            assert not line["response"] or "copy_of" in told or told["attempts"] >= 1
        assert not batch.tidemill.receipt or batch.tidemill.receipt.copies == len(copied(output + errors))
        if batch.status is Status.COMPLETED:
            assert all(line["response"]["status_code"] == 400 for line in errors), errors
            assert all(self._asked(batch, line) % REFUSED_EVERY == 0 for line in errors), errors
        self._check_shares(output)
        self._check_bill(batch, output)

    def _asked(self, batch: Batch, line: dict[str, Any]) -> int:
        """The line that was called for a line: itself or its original."""
        index = int(line["custom_id"][3:])
        return index if batch.tidemill.dedupe is None else original_of(index, self._world.models)

    def _check_shares(self, output: list) -> None:
        """Check that tokens of lines add up to those of their call, unless a kill separated the lines."""
        lines = defaultdict(list)
        for line in output:
            if not is_copy(line):
                lines[line["response"]["request_id"]].append(line)
        for call, own in lines.items():
            asked, *again = self._world.asked[call]
            if not again and len(own) == len(asked):
                read = sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in own)
                assert read == sum(index + 1 for _, index in asked)

    def _check_bill(self, batch: Batch, output: list) -> None:
        records = self._world.log.records[Place(topics.LEDGER.name, 0)]
        entries = [codec.decode_ledger(record.value) for record in records]
        entries = [entry for entry in entries if entry.batch_id == batch.id]
        latest = max((entry.owner for entry in entries), default=0)
        entries = [entry.model_copy(update={"owner": 0}) for entry in entries if entry.owner == latest]
        if batch.tidemill is None or batch.tidemill.receipt is None:
            return
        assert entries
        assert all(entry == entries[0] for entry in entries), entries
        paid = [line for line in output if not is_copy(line)]
        read = sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in paid)
        assert read == batch.usage.input_tokens
        assert sum(result.usage.input_tokens for result in entries[0].models) == read
        assert sum(result.bill.cost.total for result in entries[0].models) == batch.tidemill.cost.total
        self._check_models(batch, output)

    def _check_models(self, batch: Batch, output: list) -> None:
        """Check that a batch of both models has the counts and the usage of each, once it is accepted."""
        models, total = self._world.models, batch.request_counts.total
        is_accepted = batch.in_progress_at is not None or batch.model is not None or batch.tidemill.models
        if not is_accepted or len({model_of(index, models) for index in range(total)}) < 2:
            assert batch.tidemill.models == ()
            return
        for share in batch.tidemill.models:
            mine = [line for line in output if model_of(int(line["custom_id"][3:]), models) == share.model]
            assert share.request_counts.completed == len(mine)
            assert share.usage.input_tokens == sum(
                line["response"]["body"]["usage"]["prompt_tokens"] for line in mine if line not in copied(mine)
            )
        shares = [share.request_counts for share in batch.tidemill.models]
        assert sum(counts.total for counts in shares) == total
        assert sum(counts.failed for counts in shares) == batch.request_counts.failed

    def _files(self) -> list:
        values = [record.value for record in self._world.log.records[Place(topics.FILES.name, 0)]]
        return [codec.decode_file(value) for value in values if value is not None]

    def _file(self, batch: Batch, part: str) -> list:
        receipt = batch.tidemill.receipt if batch.tidemill else None
        file_id = batch.output_file_id if part == "output" else batch.error_file_id
        found = getattr(receipt, part) if receipt else None
        if file_id is None:
            assert found is None
            return []
        records = [record for record in self._files() if record.file.id == file_id]
        latest = max(records, key=lambda record: record.owner)
        content = self._world.objects[latest.key]
        assert hashlib.sha256(content).hexdigest() == found.sha256, (
            f"{part} of {batch.id} is not what was receipted"
        )
        return [json.loads(line) for line in content.splitlines()]
