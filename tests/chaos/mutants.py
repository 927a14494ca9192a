"""Mutations of the code that exactly-once results depend on."""

from dataclasses import dataclass

_COMMON = "--seed 5 --whole --patience 60 --batches 16"
_PARTS = (
    f"{_COMMON} --faults kill:results --count 8 --every 4 --seconds 32 --lines 8000 --latency 0.4 "
    "--answer-bytes 4000 --part-bytes 65536"
)
"""Results is killed again and again while it writes many small parts."""
_UNEVEN = f"{_COMMON} --faults kill:processors --count 6 --every 5 --seconds 25 --lines 6000 --slow 4"
"""Processors are killed while some lines are still out, and those after them are done."""
_CALLS = (
    f"{_COMMON} --faults kill:processors --count 5 --every 4 --seconds 20 --lines 4000 "
    "--in-flight 4 --latency 0.02"
)
"""Processors are killed when far more is done than is in flight."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change: `old` becomes `new` in a file."""

    name: str
    file: str
    old: str
    new: str
    real: str | None = None
    """Arguments of a real run (`python -m chaos`) that hits the broken code; None if only chance would hit it,
    such as some milliseconds between two records."""


MUTATIONS = (
    Mutation(
        name="the gate acknowledges out of order",
        file="src/tidemill/kafka/partitions/ack_gate.py",
        old="while self._tickets and self._tickets[0].done:\n            yield self._tickets.popleft().item",
        new="self._tickets.remove(ticket)\n        yield ticket.item",
        real=_UNEVEN,
    ),
    Mutation(
        name="a record is acknowledged when its owner gets it",
        file="src/tidemill/kafka/partitions/owner.py",
        old='        value = record.value or b""\n        lines = 0',
        new='        acknowledge()\n        value = record.value or b""\n        lines = 0',
    ),
    Mutation(
        name="the table is written before the part",
        file="results/files/part_writer.py",
        old="                part = await write_part(\n",
        new=(
            "                from tidemill.schemas.log.part import PartRef\n"
            "                early = PartRef(number=active.tried_part, failed=failed,"
            " first=min(buffer.indices), writer=self._writer)\n"
            '                named = {"parts": (*active.state.parts, early)}\n'
            "                self._tables.put_state(active.state.model_copy(update=named))\n"
            "                await self._tables.delivered()\n"
            "                part = await write_part(\n"
        ),
    ),
    Mutation(
        name="the bitmap is written before its part",
        file="results/state/tables.py",
        old="chunks = [] if active.waiting_bytes or active.state.closed else self._touched(active)",
        new="chunks = self._touched(active)",
        real=_PARTS,
    ),
    Mutation(
        name="lines are acknowledged before they are in a part",
        file="results/partition.py",
        old="        active.acks.append(ack)\n        if active.waiting_bytes",
        new="        ack()\n        if active.waiting_bytes",
        real=_PARTS,
    ),
    Mutation(
        name="the bitmap does not wait for its state",
        file="results/state/tables.py",
        old="self.put_state(active.state)\n        await self.delivered()\n        for active, chunks",
        new="self.put_state(active.state)\n        for active, chunks",
    ),
    Mutation(
        name="the changelog is not awaited",
        file="results/state/tables.py",
        old="self._put_chunks(active, chunks)\n        await self.delivered()",
        new="self._put_chunks(active, chunks)",
    ),
    Mutation(
        name="the bitmap takes a line twice",
        file="results/state/line_bitmap.py",
        old="        if not self._done.add(index):\n            return False\n",
        new="        self._done.add(index)\n",
        real=_PARTS,
    ),
    Mutation(
        name="the merge takes a line twice",
        file="results/files/merge.py",
        old="        if not sums.lines.mark(index.indices[end], failed=False):\n            break\n",
        new="        sums.lines.mark(index.indices[end], failed=False)\n",
    ),
    Mutation(
        name="the ledger comes after the state",
        file="results/batches.py",
        old=(
            "        offset, _ = await asyncio.gather(self._publisher.files(after, fact),"
            " self._publisher.bill(after, fact))\n"
        ),
        new=(
            "        offset = await self._publisher.files(after, fact)\n"
            "        active.state = after.model_copy(update={'files_offset': offset})\n"
            "        await self._tables.keep(active)\n"
            "        await self._publisher.bill(after, fact)\n"
        ),
    ),
    Mutation(
        name="a part has no writer",
        file="schemas/log/part.py",
        old='writer = f"-{part.writer}" if part.writer else ""',
        new='writer = ""',
    ),
    Mutation(
        name="all owners of a partition write the same rows",
        file="src/tidemill/kafka/partitions/owned_table.py",
        old='return b"%016x" % self.owner',
        new='return b"%016x" % 1',
    ),
    Mutation(
        name="the files of another owner's lines are taken",
        file="results/partition.py",
        old=" or fact.closed_by != active.state.closed_by:",
        new=":",
    ),
    Mutation(
        name="two owners write one file",
        file="results/files/compaction.py",
        old="kind), self.writer)\n",
        new="kind))\n",
    ),
    Mutation(
        name="a batch that is over is compacted again",
        file="results/batches.py",
        old=(
            "        if active.state.is_over:\n"
            "            self.drop(active)\n"
            "            active.release()\n"
            "        else:\n"
            "            self._go_on(active)\n"
            "            # Only now, since the record can no longer fail and be undone.\n"
        ),
        new="        self._go_on(active)\n        if not active.state.is_over:\n",
    ),
    Mutation(
        name="lines in memory are acknowledged before their files are written",
        file="results/batches.py",
        old="    fact = await self._finalizer.finish_at_once(",
        new="    active.release()\n            fact = await self._finalizer.finish_at_once(",
    ),
    Mutation(
        name="a batch that was written from memory is shown after the table has its end",
        file="results/batches.py",
        old='        active.state = after.model_copy(update={"files_offset": offset})\n',
        new=(
            '        active.state = after.model_copy(update={"files_offset": offset})\n'
            "        await self._tables.keep(active)\n"
        ),
    ),
    Mutation(
        name="processors forget which lines are completed",
        file="processors/partitions/completed_lines.py",
        old="        return (bitmap := self._batches.get(batch_id)) is not None and index in bitmap",
        new="        return False",
        real=_CALLS,
    ),
    Mutation(
        name="processors read nothing back",
        file="processors/partitions/assignment.py",
        old="        if self._read.get((partition, self._added_after[record.tp]), NEVER) <= since:",
        new="        if True:",
    ),
    Mutation(
        name="a copy beyond the end is taken for new",
        file="processors/partitions/assignment.py",
        old="record.offset >= end and created is not None and created >= self._assigned_at",
        new="record.offset >= end",
    ),
    Mutation(
        name="a line is done before the log has its outcome",
        file="processors/outcomes/sending.py",
        old="        await self._outbox.send(results",
        new=(
            "        self._on_arrival(results.receipts)\n"
            "        results.receipts = []\n"
            "        await self._outbox.send(results"
        ),
    ),
    Mutation(
        name="the items of a joined reply are not matched by their index",
        file="processors/joined/reply.py",
        old="    return [by_index[index] for index in range(count)]",
        new="    return items",
    ),
    Mutation(
        name="the remainder of a shared count is lost",
        file="processors/joined/reply.py",
        old="by_remainder[: total - sum(found)]",
        new="by_remainder[:0]",
    ),
    Mutation(
        name="a refused call fails all of its lines",
        file="processors/joined/caller.py",
        old="is_refused = retry.blamed(failure, evidence) is Fault.LINE",
        new="is_refused = False",
    ),
    Mutation(
        name="a closed batch takes lines",
        file="results/state/reducer.py",
        old="return not self.closed and self",
        new="return self",
    ),
    Mutation(
        name="copies are published",
        file="ingest/files/verdict.py",
        old="((place, data) for place, data in placed if place not in self.places) if self.by_model else placed",
        new="placed",
    ),
    Mutation(
        name="a batch waits for results of its copies",
        file="results/state/reducer.py",
        old="and done >= state.batch.lines_asked",
        new="and done >= state.batch.request_counts.total",
    ),
    Mutation(
        name="a copy gets the result of another line",
        file="results/files/copies.py",
        old="if copy.original == index and run.mark(",
        new="if run.mark(",
    ),
    Mutation(
        name="a copy is billed",
        file="results/files/copies.py",
        old="if not self._is_billed:",
        new="if False:",
    ),
    Mutation(
        name="copies of failed lines are not run",
        file="results/files/copies.py",
        old="for failed in (False, True):",
        new="for failed in (False,):",
    ),
    Mutation(
        name="the original of equal lines depends on the attempt",
        file="ingest/files/stage.py",
        old="        if batch.tidemill.dedupe not in",
        new="""        import random

        self._kept.keep = lambda *_: asyncio.sleep(0)
        if random.random() < 0.5 or batch.tidemill.dedupe not in""",
    ),
    Mutation(
        name="a partition is left before its calls have ended",
        file="processors/dispatcher.py",
        old="                await self._idle.wait()\n",
        new="                pass\n",
    ),
    Mutation(
        name="a line of a partition that is gone is called again",
        file="processors/lines.py",
        old="return all(entry.window.is_closed for entry in self.entries)",
        new="return False",
    ),
    Mutation(
        name="a partition is read while calls of its former owner are in flight",
        file="processors/partitions/handover.py",
        old='elif not (text := marks.get(number, ""))',
        new='elif True or not (text := marks.get(number, ""))',
    ),
    Mutation(
        name="a partition with calls in flight is not marked",
        file="processors/member.py",
        old="hold(self._in_flight())",
        new="hold({})",
    ),
    Mutation(
        name="a mark is not renewed",
        file="processors/partitions/handover.py",
        old="                await self._let_go()\n                await self._renew()\n",
        new="                pass\n",
    ),
    Mutation(
        name="the mark of a process that has ended stays",
        file="processors/partitions/handover.py",
        old="is_free := now >= since + STALE_SECONDS",
        new="is_free := False",
    ),
    Mutation(
        name="outcomes that were read before a hand-over count",
        file="processors/partitions/assignment.py",
        old="        self.handovers += 1",
        new="        self.handovers += 0",
    ),
)
