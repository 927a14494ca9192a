"""Turns the input file of a created batch into requests; the file is read at least twice.

A JSON Schema of the answers is stored first, and an input in a bucket is copied to the store (`imports.py`). Then:

1. Read the file and check every line. If any line has a fault, send `Rejected` with all faults, and stop. If equal
   lines are to be asked once, read it again, and write the list of copies (`sqlite.py`). Keep the verdict.
2. Send `Accepted`, and wait until the log has it, before any line is published.
3. Read the file again and publish its lines, but for copies, until the log has them all.

After a crash Kafka redelivers the command, and all steps are repeated, but the verdict that was kept counts
(`kept_verdicts.py`). Readers recognise copies by batch and index (docs/reference/protocol.md, steps 1 to 4).
"""

import asyncio
import dataclasses
import logging
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from opentelemetry.trace import SpanKind

from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import Settings
from tidemill.ingest.files import error_lines
from tidemill.ingest.files.imports import Import, Importer
from tidemill.ingest.files.kept_verdicts import KeptVerdicts
from tidemill.ingest.files.packing import (
    PUBLISH,
    Packer,
    RequestPublisher,
    RequestRecord,
    head_of,
    placed,
    publication,
    sliced,
)
from tidemill.ingest.files.sqlite import EqualLines
from tidemill.ingest.files.validation import LONG_LINE_BYTES, Checker, Rules
from tidemill.ingest.files.verdict import INTERNAL_FAULT, Failed, Passed, accepted, missing_file
from tidemill.ingest.files.wait_report import WaitReport
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.partitions.dead_letters import safe_reason
from tidemill.retrying import pause_seconds, retry
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.jsonl.lines import Line, lines_of
from tidemill.schemas.log.messages import (
    BatchCreated,
    CancelRequested,
    Command,
    DeleteRequested,
    InputRef,
    Rejected,
)
from tidemill.schemas.log.part import copies_key, schema_key
from tidemill.schemas.log.topics import COMMANDS, EXPRESS_LINES_MAX
from tidemill.schemas.ports import READ_BYTES, Clock, NotFound, Store, once
from tidemill.sealing.vault import NoKey
from tidemill.telemetry import context, tracing
from tidemill.wording import counted

log = logging.getLogger(__name__)
T = TypeVar("T")

BIG_BYTES_MIN: Final = 4 << 20
"""A file of this size or more is big."""
BIG_AT_ONCE_MAX: Final = 2
SMALL_AT_ONCE_MAX: Final = 16
"""Small files never wait for big ones: each kind has its own limit."""

VALIDATE: Final = f"validate {COMMANDS.name}"
VALIDATED: Final = tracing.messaging("validate", "process", COMMANDS.name)
_INPUT: Final = re.compile(r"files/(?:[0-9a-f]{2}/)?[A-Za-z0-9_-]{1,64}\Z")
"""Keys of input files in the store; a command that names another object is rejected."""


class _Stopped(Exception):
    """The batch was cancelled."""


class _Work:
    """A command under way."""

    def __init__(self, command: BatchCreated, report: WaitReport) -> None:
        self.command = command
        self.report = report
        self.is_stopped = False
        self.imported: Import | None = None
        """The input to be copied from a bucket; None once it is in the store."""
        self.rules: Rules | None = None
        """The rules of the last check."""
        self.accepted: Passed | None = None
        """The verdict that the log has; another one, of a later check, would change nothing."""

    def check_stopped(self) -> None:
        if self.is_stopped:
            raise _Stopped


class FileIngest:
    """Handles commands, many at a time."""

    def __init__(
        self,
        settings: Settings,
        *,
        catalog: Catalog,
        store: Store,
        requests: RequestPublisher,
        clock: Clock,
        importer: Importer | None = None,
    ) -> None:
        """Handle nothing yet; without an importer, inputs in buckets are refused."""
        self._importer = importer
        self._settings = settings
        self._catalog = catalog
        self._store = store
        self._requests = requests
        self._kept = KeptVerdicts(store, requests)
        self._clock = clock
        self._big = asyncio.Semaphore(BIG_AT_ONCE_MAX)
        self._small = asyncio.Semaphore(SMALL_AT_ONCE_MAX)
        self._works: defaultdict[str, list[_Work]] = defaultdict(list)

    async def handle(self, command: Command) -> None:
        """Handle a command; on return it may be acknowledged.

        If the store or the log is unavailable, this may take until the batch's deadline. After a cancellation or
        an error the same command may be handled again.
        """
        match command:
            case BatchCreated():
                await self._ingest(_Work(command, WaitReport(command.batch.id, self._requests, self._clock)))
            case CancelRequested(batch_id=batch_id):
                for work in self._works.get(batch_id, ()):
                    work.is_stopped = True
            case DeleteRequested():
                pass  # only a batch that is over is deleted

    def is_importing(self, batch_id: str) -> bool:
        """Whether a batch waits for the copy of its input from a bucket."""
        return any(work.imported is not None for work in self._works.get(batch_id, ()))

    async def close(self) -> None:
        """Close the connections to buckets."""
        if self._importer is not None:
            await self._importer.buckets.close()

    async def _ingest(self, work: _Work) -> None:
        batch_id = work.command.batch.id
        works = self._works[batch_id]
        works.append(work)
        trace_id = (work.command.batch.tidemill.traceparent or "")[3:35]
        try:
            with context.bound(batch_id=batch_id, trace_id=trace_id):
                await self._store_schema(work)
                await self._retried(work)
        except _Stopped:
            log.info("%s was cancelled before it was published", batch_id)
        finally:
            works.remove(work)
            if not works:
                self._works.pop(batch_id, None)

    async def _store_schema(self, work: _Work) -> None:
        """Write the JSON Schema of the answers to the store; a rerun needs it even if no line gets published."""
        if (schema := work.command.answer_schema) is None:
            return
        batch_id = work.command.batch.id

        async def write() -> None:
            async with work.report.faults():
                await self._requests.begin(batch_id, work.command.project)
            await self._store.write(schema_key(batch_id), once(schema.encode()))

        try:
            await retry(f"storing the schema of {batch_id}", write)
        except NoKey:
            log.info("%s was deleted before it was validated", batch_id)

    async def _retried(self, work: _Work) -> None:
        source, batch = work.command.input, work.command.batch
        work.imported = self._importer.of(work.command, work.report) if self._importer is not None else None
        room = self._big if source is not None and source.bytes >= BIG_BYTES_MIN else self._small
        failures = 0
        while self._clock() < batch.expires_at:
            try:
                async with work.report.faults():
                    if await self._is_refused(work):
                        return
                    async with room:
                        await self._attempt(work)
                await work.report.clear()
            except OSError as error:
                pause = pause_seconds(failures)
                failures += 1
                log.warning("publishing %s failed (%s); next try in %.1f s", batch.id, safe_reason(error), pause)
            else:
                return
            await asyncio.sleep(pause)
        log.warning("%s reached its deadline before it was published", batch.id)

    async def _is_refused(self, work: _Work) -> bool:
        """Copy the input from its bucket, unless that is done; returns whether the batch is rejected for it."""
        if self._importer is None or work.imported is None:
            return False
        failed = await self._importer.run(work.imported, self._settings.input_life_seconds, work.check_stopped)
        if failed is not None:
            await self._reject(work, failed)
            return True
        work.imported = None
        return False

    async def _reject(self, work: _Work, failed: Failed) -> None:
        batch_id = work.command.batch.id
        await self._requests.send_fact(Rejected(batch_id=batch_id, errors=failed.errors, at=int(self._clock())))
        log.info("%s is rejected: %s", batch_id, counted(len(failed.errors), "error"))

    async def _attempt(self, work: _Work) -> None:
        batch, is_accepted = work.command.batch, work.accepted is not None
        if (verdict := work.accepted or await self._accept(work)) is None:
            return
        work.check_stopped()
        assert work.command.input is not None
        try:
            if is_accepted:
                await self._kept.keep_accepted(work.command, verdict)
            try:
                if verdict.faulty:
                    await self._refuse(work, work.command.input, verdict)
                with tracing.step(PUBLISH, SpanKind.PRODUCER, batch, publication(verdict.total)):
                    await self._requests.publish(self._records(work, work.command.input, verdict))
            except NotFound:
                log.warning("%s: its input was deleted while it was published", batch.id)
                await self._refuse_all(batch.id, work.command.project, verdict)
        except NoKey:
            log.warning("%s was deleted while it was published", batch.id)
        else:
            log.info("%s is published: %s", batch.id, counted(verdict.total, "line"))

    async def _accept(self, work: _Work) -> Passed | None:
        """Check the file and send the verdict; returns None if the batch is rejected."""
        batch = work.command.batch
        # Also if the batch was cancelled meanwhile: its lines must be counted.
        with tracing.step(VALIDATE, SpanKind.CONSUMER, batch, VALIDATED) as span:
            verdict = await self._kept.of(batch.id) or await self._verdict(work)
            if isinstance(verdict, Failed):
                tracing.failed(span, "invalid_input")
                await self._reject(work, verdict)
                return None
            span.set_attribute(tracing.COUNT, verdict.total)
        await self._requests.send_fact(accepted(batch.id, verdict, int(self._clock())))
        work.accepted = verdict
        return verdict

    async def _verdict(self, work: _Work) -> Passed | Failed:
        """Check the file. A bug in the check rejects the file, since the command would otherwise come for ever."""
        source, batch = work.command.input, work.command.batch
        missing = missing_file(batch.input_file_id, work.command.project)
        if source is None or _INPUT.match(source.key) is None:
            return missing
        try:
            verdict = await self._checked(work, source)
            if isinstance(verdict, Passed):
                verdict = await self._with_copies(work, source, verdict)
            verdict = await self._kept.keep(work.command, verdict)
        except (NotFound, NoKey):
            return missing
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  see above
            log.error("%s: %s", batch.id, safe_reason(error))  # noqa: TRY400
            return Failed(errors=(INTERNAL_FAULT,))
        return verdict

    async def _checked(self, work: _Work, source: InputRef) -> Passed | Failed:
        before = self._catalog.contents
        verdict = await self._checked_against(before.serving, work, source)
        if isinstance(verdict, Failed) or verdict.faulty:
            # The batch may name a model that was added a moment ago.
            await self._catalog.catch_up()
            if (now := self._catalog.contents).revision != before.revision:
                return await self._checked_against(now.serving, work, source)
        return verdict

    async def _checked_against(self, serving: Serving, work: _Work, source: InputRef) -> Passed | Failed:
        work.rules = self._rules(serving, work)
        checker, most = Checker(work.rules), self._settings.line_bytes_max
        is_too_large = source.bytes > self._settings.file_bytes_max
        async with aclosing(self._slices(source.key, most, READ_BYTES if is_too_large else None)) as slices:
            async for lines in slices:
                await _run(checker.check, lines[:1] if is_too_large else lines)
                if is_too_large or checker.is_full:
                    break
        if is_too_large:
            return checker.too_large()
        await checker.check_uploaded(self._store)
        return checker.verdict()

    def _rules(self, serving: Serving, work: _Work) -> Rules:
        settings, command = self._settings, work.command
        models = {name: model.endpoints for name, model in serving.models.items()}
        return Rules(
            endpoint=command.batch.endpoint, project=command.project, models=models, aliases=serving.aliases,
            lines_max=settings.file_lines_max, bytes_max=settings.file_bytes_max,
            line_bytes_max=settings.line_bytes_max, reply_bytes_max=settings.reply_bytes_max,
            models_max=settings.limits_of(command.project).models_per_batch_max,
        )  # fmt: skip

    async def _with_copies(self, work: _Work, source: InputRef, passed: Passed) -> Passed:
        """Find the lines that equal an earlier one, and write their list; file and command alone determine both.

        Raises:
            NoKey: The batch is deleted.
        """
        batch = work.command.batch
        # A file with faulty lines has no copies, because the catalog also determines which lines are faulty.
        if batch.tidemill.dedupe not in {"batch", "all"} or passed.faulty:
            return passed
        await self._requests.begin(batch.id, work.command.project)
        with EqualLines(batch.endpoint, is_forced=batch.tidemill.dedupe == "all") as equal:
            async with aclosing(self._slices(source.key, passed.line_bytes_max)) as slices:
                async for lines in slices:
                    await _run(equal.add, lines)
            copies = equal.copies(passed.numbers)
            if copies.count:
                await self._store.write(copies_key(batch.id), equal.encoded())
        return dataclasses.replace(passed, copies=copies)

    async def _refuse(self, work: _Work, source: InputRef, passed: Passed) -> None:
        """Publish the error lines of faulty lines, which it finds by a second check: few files have faults."""
        rules = work.rules or self._rules(self._catalog.contents.serving, work)
        # With the bounds of the verdict, which may be kept from an earlier attempt.
        checker = Checker(dataclasses.replace(rules, line_bytes_max=passed.line_bytes_max, lines_max=passed.total))
        batch_id, place = work.command.batch.id, 0
        await self._requests.begin(batch_id, work.command.project)
        async with aclosing(self._slices(source.key, passed.line_bytes_max)) as slices:
            async for lines in slices:
                work.check_stopped()
                faulty = error_lines.refused(lines, place, await _run(checker.faulty, lines), passed)
                for marks, value in error_lines.packed(batch_id, faulty):
                    await self._requests.refuse(batch_id, marks, value, model=passed.models[0])
                place += len(lines)

    async def _refuse_all(self, batch_id: str, project: str, passed: Passed) -> None:
        """Publish an error line for each line: the input is gone, and results waits for all of them.

        Some of the lines may be in the log; of several results of a line, the first one counts.
        """
        await self._requests.begin(batch_id, project)
        for model, marks, value in error_lines.lost(batch_id, passed):
            await self._requests.refuse(batch_id, marks, value, model=model)

    async def _records(self, work: _Work, source: InputRef, passed: Passed) -> AsyncIterator[RequestRecord]:
        batch, is_validated = work.command.batch, work.command.answer_schema is not None
        head = head_of(batch, work.command.project, created=batch.created_at, validated=is_validated)
        packer = Packer(head, passed.models, passed.numbers, express=passed.total <= EXPRESS_LINES_MAX)
        place = 0
        async with aclosing(self._slices(source.key, passed.line_bytes_max)) as slices:
            async for lines in slices:
                work.check_stopped()
                valid = placed(place, source.key, lines, passed.faulty)
                for record in packer.pack(passed.copies.left_out_of(valid)):
                    yield record
                place += len(lines)
                await work.report.clear()
        for record in packer.finish():
            yield record

    async def _slices(
        self, key: str, line_bytes_max: int, end: int | None = None
    ) -> AsyncGenerator[list[Line], None]:
        """The lines of a file in slices; other tasks run between two slices."""
        async with aclosing(self._store.read(key, 0, end)) as chunks:
            async for found in lines_of(chunks, line_bytes_max):
                for lines in sliced(found, lambda line: len(line.data or b"")):
                    yield lines
                    await asyncio.sleep(0)


async def _run(work: Callable[[list[Line]], T], lines: list[Line]) -> T:
    """Call a function with lines, in a thread if some are long."""
    is_long = any(line.data and len(line.data) > LONG_LINE_BYTES for line in lines)
    return await run_half_time(work, lines) if is_long else work(lines)
