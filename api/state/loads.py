"""What a project has at work and in store, and whether more of it may come.

What this process has said yes to counts at once, before the view shows it. Another api process sees it some
milliseconds later, so together they may go beyond a limit by what is under way at that moment.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

from tidemill.api import errors
from tidemill.api.state.sqlite import Database
from tidemill.disk_space import DiskFull, DiskSpace
from tidemill.schemas.batch import Batch
from tidemill.settings import Limits


@dataclass(kw_only=True)
class Load:
    """What counts against the limits of one project."""

    batches: int = 0
    """Those that are not over."""
    lines: int = 0
    """Lines of such batches that are not final."""
    bytes: int = 0
    """Of files, and of uploads in parts that are not put together yet."""


class Loads:
    """In the file of the view, and what is on its way there."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._coming: defaultdict[str, Load] = defaultdict(Load)

    def of(self, project: str) -> Load:
        """What a project has, and what this process is about to give it."""
        ((batches, lines),) = self._database.read(
            "SELECT count(*), coalesce(sum(lines_left), 0) FROM batches WHERE project = ? AND NOT over", project
        )
        ((in_files,),) = self._database.read(
            "SELECT coalesce(sum(bytes), 0) FROM files WHERE project = ? AND (deleted_at IS NULL OR held)", project
        )
        ((in_parts,),) = self._database.read(
            "SELECT coalesce(sum(parts.bytes), 0) FROM uploads JOIN parts ON upload_id = uploads.id"
            " WHERE project = ? AND pending",
            project,
        )
        coming = self._coming.get(project, Load())
        return Load(
            batches=int(str(batches)) + coming.batches,
            lines=int(str(lines)) + coming.lines,
            bytes=int(str(in_files)) + int(str(in_parts)) + coming.bytes,
        )

    def lines_left(self, batch: Batch) -> int:
        """Lines of a batch that are not final; until ingest has counted them, those of its input file."""
        if batch.status.is_terminal:
            return 0
        if (counts := batch.request_counts).total:
            return counts.total - counts.completed - counts.failed
        rows = self._database.read("SELECT lines FROM files WHERE id = ?", batch.input_file_id)
        return int(str(rows[0][0] or 0)) if rows else 0

    def come(self, project: str, *, batches: int = 0, lines: int = 0, size: int = 0) -> None:
        """So much more is coming; negative once it is there, or will not come."""
        coming = self._coming[project]
        coming.batches += batches
        coming.lines += lines
        coming.bytes += size
        if coming == Load():
            del self._coming[project]


class Booking:
    """Room for what one request brings: a context manager that gives it back once the view shows it."""

    def __init__(self, loads: Loads, limits: Limits, project: str, space: DiskSpace) -> None:
        self._space = space
        self._loads = loads
        self._limits = limits
        self._project = project
        self._booked = Load()

    @property
    def project(self) -> str:
        """Whose room it is."""
        return self._project

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        booked, self._booked = self._booked, Load()
        self._loads.come(self._project, batches=-booked.batches, lines=-booked.lines, size=-booked.bytes)

    def batch(self, lines: int) -> None:
        """Book a batch of so many lines.

        Raises:
            ApiError: 429, there is no room for it in the project; 507, there is none on a disk.
        """
        self._accept(0)
        load, limits = self._loads.of(self._project), self._limits
        if load.batches >= limits.batches_in_progress_max:
            raise errors.beyond(
                "batches_in_progress_max",
                f"Project '{self._project}' has {load.batches} batches in progress and may have "
                f"{limits.batches_in_progress_max}. Wait until one is over, or cancel one.",
            )
        if load.lines + lines > limits.lines_enqueued_max:
            raise errors.beyond(
                "lines_enqueued_max",
                f"Project '{self._project}' has {load.lines} lines enqueued and may have "
                f"{limits.lines_enqueued_max}; this file has {lines} more. "
                "Wait until some are done, cancel a batch, or split the file.",
            )
        self._loads.come(self._project, batches=1, lines=lines)
        self._booked.batches += 1
        self._booked.lines += lines

    def bytes(self, size: int) -> None:
        """Book an upload of so many bytes in all; what was booked for it before counts towards them.

        Raises:
            ApiError: 429, there is no room for it in the project; 507, there is none on a disk.
        """
        more = size - self._booked.bytes
        if more <= 0:
            return
        self._accept(more)
        load = self._loads.of(self._project)
        if load.bytes + more > self._limits.bytes_stored_max:
            raise errors.beyond(
                "bytes_stored_max",
                f"Project '{self._project}' stores {load.bytes - self._booked.bytes} bytes and may store "
                f"{self._limits.bytes_stored_max}; this upload has {size} more. Delete files you do not need.",
            )
        self._loads.come(self._project, size=more)
        self._booked.bytes += more

    def _accept(self, size: int) -> None:
        try:
            self._space.accept(size)
        except DiskFull as error:
            raise errors.from_store(error) from error
