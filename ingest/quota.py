"""The quotas of each project: its work and stored bytes, and whether its streams may add more.

The counts follow `tidemill.batches` and `tidemill.files`. This process counts the lines of its own streams at
once; other processes see them a moment later, so together they may exceed a limit by the lines in transit.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from tidemill import quotas
from tidemill.configuration.projects import Limits
from tidemill.ingest import batch_records
from tidemill.ingest.files.verdict import LineFault
from tidemill.ingest.open_streams import OpenStream, OpenStreams
from tidemill.ingest.sqlite import Sizes
from tidemill.quotas import Quota, QuotaExceeded
from tidemill.schemas import UNREADABLE
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import VERSION
from tidemill.schemas.resources.file import cost_bytes
from tidemill.wording import counted

log = logging.getLogger(__name__)


class _File(msgspec.Struct, frozen=True):
    bytes: int


class _FileRecord(msgspec.Struct, frozen=True):
    project: str
    file: _File
    v: int = 1


# A process reads all files when it starts, so it decodes only the fields that it counts.
_files = msgspec.json.Decoder(_FileRecord)


@dataclass(slots=True)
class _Work:
    """A batch that is not over."""

    project: str
    total: int = 0
    """Lines so far, counted by this process or by the log."""
    final: int = 0
    """Final lines, by the log."""
    refused: int = 0
    """Lines that this process refused because of a limit."""

    @property
    def left(self) -> int:
        return max(0, self.total - max(self.final, self.refused))


class Quotas:
    """The quotas of all projects."""

    def __init__(self, limits_of: Callable[[str], Limits], sizes: Sizes, batches: Sizes) -> None:
        """Begin with empty counts.

        Args:
            limits_of: The limits of a project.
            sizes: An empty table for the files.
            batches: An empty table for the batches; the size of one is 1 if it has its input, else 0.
        """
        self._limits_of = limits_of
        self._sizes = sizes
        self._kept = batches
        self._works: dict[str, _Work] = {}
        """By batch id; the limits bound their number."""
        self._batches: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._inputs: dict[str, int] = {}
        """Bytes of the unfinished inputs of this process's streams, by file id."""
        self._growing: Counter[str] = Counter()
        """The sums of these bytes by project."""
        self._open = OpenStreams()

    def batch(self, key: str, value: bytes | None, offset: int) -> None:
        """Apply a record of `tidemill.batches`."""
        if value is None:
            self._drop(key)
            self._kept.drop(key)
            self._open.drop(key)
            return
        if (record := batch_records.decoded(value, offset)) is None:
            return
        known = self._kept.size(key)
        if known is None or known < record.batch.has_input:
            self._kept.put(key, record.project, int(record.batch.has_input))
        if record.batch.status.is_terminal:
            self._drop(key)
            self._open.drop(key)
        elif key in self._works or known is None:
            # A known batch without work has ended: a former owner of its partition wrote this record too late.
            self._open.apply(key, record)
            counts = record.batch.request_counts
            self._count(key, record.project, counts.total, counts.completed + counts.failed)

    def file(self, key: str, value: bytes | None, offset: int) -> None:
        """Apply a record of `tidemill.files`."""
        if value is None:
            self._sizes.drop(key)
            return
        try:
            record = _files.decode(value)
        except UNREADABLE as error:
            log.warning("record %d of the files cannot be read (%s)", offset, type(error).__name__)
            return
        if record.v == VERSION:
            self._sizes.put(key, record.project, cost_bytes(record.file.bytes))
            self._growing[record.project] -= self._inputs.pop(key, 0)

    def knows(self, batch_id: str) -> bool:
        """Whether `tidemill.batches` has the batch, at work or over."""
        return batch_id in self._kept

    def has_input(self, batch_id: str) -> bool:
        """Whether `tidemill.batches` shows that the batch has its input, or is over."""
        return self._kept.size(batch_id) == 1

    def owns(self, project: str, batch_id: str) -> bool:
        """Whether `tidemill.batches` has the batch as one of the project."""
        return self._kept.project(batch_id) == project

    def elsewhere(self, project: str, stream: str, partition: int) -> OpenStream | None:
        """An open stream of this name in another partition of the intake, as `tidemill.batches` shows it."""
        return self._open.elsewhere(project, stream, partition)

    def check_batch(self, project: str) -> None:
        """Check that a project may have one more batch.

        Raises:
            IntakeError: It may not.
        """
        self._check(Quota.BATCHES_IN_PROGRESS, project, self._batches[project])
        self._check(Quota.BATCHES, project, self._kept.number(project))
        self._check(Quota.FILES, project, self._sizes.number(project))

    def check_bytes(self, project: str, size: int) -> None:
        """Check that a project may store this many more bytes.

        Raises:
            IntakeError: It may not.
        """
        self._check(Quota.BYTES, project, self._sizes.of(project) + self._growing[project], size)

    def count_stream(self, batch_id: str, project: str, total: int, input_file_id: str, size: int) -> None:
        """Count the lines and bytes of a stream so far."""
        self._count(batch_id, project, total, 0)
        cost = cost_bytes(size)
        self._growing[project] += cost - self._inputs.get(input_file_id, 0)
        self._inputs[input_file_id] = cost

    def claim_input(self, project: str, file_id: str, size: int) -> None:
        """Count an input that is being copied, as one more file.

        Raises:
            QuotaExceeded: The project may not have it.
        """
        limits = self._limits_of(project)
        if self._sizes.project(file_id) is None and file_id not in self._inputs:
            quotas.check(Quota.FILES, self._sizes.number(project), 1, limits)
            held = self._sizes.of(project) + self._growing[project]
            quotas.check(Quota.BYTES, held, cost_bytes(size), limits)
            self._inputs[file_id] = cost_bytes(size)
            self._growing[project] += cost_bytes(size)

    def release_input(self, project: str, file_id: str) -> None:
        """Stop counting an input, since its file record counts now."""
        self._growing[project] -= self._inputs.pop(file_id, 0)

    def has_lines(self, batch_id: str) -> bool:
        """Whether lines of a batch count, or have counted until its end."""
        work = self._works.get(batch_id)
        return self.knows(batch_id) if work is None else work.total > 0

    def check_lines(self, project: str, file_id: str, lines: int) -> None:
        """Check that a project may have the lines of a file enqueued; those of a known file were checked before.

        Raises:
            QuotaExceeded: It may not.
        """
        if self._sizes.project(file_id) is None:
            quotas.check(Quota.LINES, self._lines[project], lines, self._limits_of(project))

    def excess(self, project: str) -> int:
        """The number of lines above a project's limit; the caller must refuse that many of the newest lines."""
        return max(0, self._lines[project] - self._limits_of(project).lines_enqueued_max)

    def refuse(self, batch_id: str, project: str, count: int) -> LineFault:
        """Count refused lines of a batch; returns the fault to show on each."""
        most = self._limits_of(project).lines_enqueued_max
        if (work := self._works.get(batch_id)) is not None:
            left = work.left
            work.refused += count
            self._lines[project] += work.left - left
        return LineFault(Quota.LINES, f"The project had {counted(most, 'line')} enqueued, and may not have more.")

    def _check(self, quota: Quota, project: str, held: int, more: int = 1) -> None:
        try:
            quotas.check(quota, held, more, self._limits_of(project))
        except QuotaExceeded as error:
            raise IntakeError(f"its project {error}") from None

    def _count(self, batch_id: str, project: str, total: int, final: int) -> None:
        if (work := self._works.get(batch_id)) is None:
            work = self._works[batch_id] = _Work(project)
            self._batches[project] += 1
        left = work.left
        work.total, work.final = max(work.total, total), max(work.final, final)
        self._lines[project] += work.left - left

    def _drop(self, batch_id: str) -> None:
        if (work := self._works.pop(batch_id, None)) is not None:
            self._batches[work.project] -= 1
            self._lines[work.project] -= work.left
