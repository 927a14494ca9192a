"""Quotas: what each project has at work and in store, and whether its streams may bring more.

They follow from `tidemill.batches` and `tidemill.files`. The streams of this process count as far as they have
come, before the log shows it; another process sees them some moments later, so together they may go beyond a limit
by what is under way at that moment.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tidemill import quotas
from tidemill.configuration.settings import Limits
from tidemill.ingest.files.validation import Fault
from tidemill.quotas import Quota, QuotaExceeded
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import VERSION
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.file import cost_bytes

log = logging.getLogger(__name__)


class Sizes(Protocol):
    """The number and the bytes of objects."""

    def number(self, project: str) -> int:
        """How many a project has."""
        ...

    def of(self, project: str) -> int:
        """All bytes of a project."""
        ...

    def __contains__(self, file_id: str) -> bool:
        """Whether it is one of them."""
        ...

    def put(self, file_id: str, project: str, size: int) -> None:
        """Take in a file."""
        ...

    def drop(self, file_id: str) -> None:
        """Take out a file."""
        ...


class _Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class _Batch(msgspec.Struct, frozen=True):
    status: Status
    request_counts: _Counts = _Counts()


class _BatchRecord(msgspec.Struct, frozen=True):
    project: str
    batch: _Batch
    v: int = 1


class _File(msgspec.Struct, frozen=True):
    bytes: int


class _FileRecord(msgspec.Struct, frozen=True):
    project: str
    file: _File
    v: int = 1


# A process that starts reads all batches and files: it decodes only the fields that count.
_batches = msgspec.json.Decoder(_BatchRecord)
_files = msgspec.json.Decoder(_FileRecord)


@dataclass(slots=True)
class _Work:
    """A batch that is not over."""

    project: str
    total: int = 0
    """Lines so far, of this process or as the log shows."""
    final: int = 0
    """Of these, the ones that are done, as the log shows."""
    refused: int = 0
    """Of these, the ones that this process refused because of a limit."""

    @property
    def left(self) -> int:
        return max(0, self.total - max(self.final, self.refused))


class Quotas:
    """Of all projects."""

    def __init__(self, limits_of: Callable[[str], Limits], sizes: Sizes, batches: Sizes) -> None:
        """Know nothing yet.

        Args:
            limits_of: What a project may have.
            sizes: Where the bytes of files are kept, empty.
            batches: Where it is kept which batches there are, empty; they have no bytes.
        """
        self._limits_of = limits_of
        self._sizes = sizes
        self._kept = batches
        self._works: dict[str, _Work] = {}
        """By batch id; as many as all projects may have in progress."""
        self._batches: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._inputs: dict[str, int] = {}
        """Of streams of this process, by file id: bytes of an input that is no file yet."""
        self._growing: Counter[str] = Counter()
        """Their sums."""

    def batch(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of `tidemill.batches`."""
        if value is None:
            self._over(key)
            self._kept.drop(key)
            return
        try:
            record = _batches.decode(value)
        except msgspec.MsgspecError as error:
            log.warning("record %d of the batches cannot be read (%s)", offset, type(error).__name__)
            return
        if record.v != VERSION:
            return
        if not (is_known := key in self._kept):
            self._kept.put(key, record.project, 0)
        if record.batch.status.is_terminal:
            self._over(key)
        elif key in self._works or not is_known:
            # Else it is over: a former owner of its partition wrote this, who did not know.
            counts = record.batch.request_counts
            self._at_work(key, record.project, counts.total, counts.completed + counts.failed)

    def file(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of `tidemill.files`."""
        if value is None:
            self._sizes.drop(key)
            return
        try:
            record = _files.decode(value)
        except msgspec.MsgspecError as error:
            log.warning("record %d of the files cannot be read (%s)", offset, type(error).__name__)
            return
        if record.v == VERSION:
            self._sizes.put(key, record.project, cost_bytes(record.file.bytes))
            self._growing[record.project] -= self._inputs.pop(key, 0)

    def opens(self, project: str) -> None:
        """Ask for one more batch.

        Raises:
            IntakeError: There is no room.
        """
        self._check(Quota.BATCHES_IN_PROGRESS, project, self._batches[project])
        self._check(Quota.BATCHES, project, self._kept.number(project))
        self._check(Quota.FILES, project, self._sizes.number(project))

    def stores(self, project: str, size: int) -> None:
        """Ask for so many bytes more.

        Raises:
            IntakeError: There is no room.
        """
        self._check(Quota.BYTES, project, self._sizes.of(project) + self._growing[project], size)

    def grown(self, batch_id: str, project: str, total: int, input_file_id: str, size: int) -> None:
        """A stream has so many lines, and so many bytes."""
        self._at_work(batch_id, project, total, 0)
        cost = cost_bytes(size)
        self._growing[project] += cost - self._inputs.get(input_file_id, 0)
        self._inputs[input_file_id] = cost

    def beyond(self, project: str) -> int:
        """How many lines too many a project has; the last ones that have come are to be refused."""
        return max(0, self._lines[project] - self._limits_of(project).lines_enqueued_max)

    def refuse(self, batch_id: str, project: str, count: int) -> Fault:
        """So many lines of a batch have found no room; gives what is said of each."""
        most = self._limits_of(project).lines_enqueued_max
        if (work := self._works.get(batch_id)) is not None:
            left = work.left
            work.refused += count
            self._lines[project] += work.left - left
        return Fault(Quota.LINES, f"The project had {most} lines enqueued, and may not have more.")

    def _check(self, quota: Quota, project: str, held: int, more: int = 1) -> None:
        try:
            quotas.check(quota, held, more, self._limits_of(project))
        except QuotaExceeded as error:
            raise IntakeError(f"its project {error}") from None

    def _at_work(self, batch_id: str, project: str, total: int, final: int) -> None:
        if (work := self._works.get(batch_id)) is None:
            work = self._works[batch_id] = _Work(project)
            self._batches[project] += 1
        left = work.left
        work.total, work.final = max(work.total, total), max(work.final, final)
        self._lines[project] += work.left - left

    def _over(self, batch_id: str) -> None:
        if (work := self._works.pop(batch_id, None)) is not None:
            self._batches[work.project] -= 1
            self._lines[work.project] -= work.left
