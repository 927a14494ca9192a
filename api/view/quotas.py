"""Checks the limits of projects on what they run and store.

What this process has accepted counts at once, before the view shows it. Other api processes see it milliseconds
later, so together they may exceed a limit by what they accept in that time.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

from tidemill.api import errors
from tidemill.api.view.sqlite import Database
from tidemill.configuration.settings import Limits
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.file import OBJECT_BYTES, cost_bytes
from tidemill.storage.disk_space import DiskFull, DiskSpace


@dataclass(kw_only=True)
class Holdings:
    """What counts against the limits of a project."""

    running: int = 0
    """Batches in progress."""
    lines: int = 0
    """Their lines without a result."""
    batches: int = 0
    """All batches."""
    files: int = 0
    bytes: int = 0
    """Of files and of pending uploads, with the overhead of each object."""
    uploads: int = 0
    keys: int = 0


class Quotas:
    """Holdings of projects: those in the view, and those that requests in progress have reserved."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._reserved: defaultdict[str, Holdings] = defaultdict(Holdings)

    def of(self, project: str) -> Holdings:
        """What a project has, with what this process has reserved for it."""
        rows = self._database.read("SELECT kind, number, amount FROM totals WHERE project = ?", project)
        totals = {kind: (int(str(number)), int(str(amount))) for kind, number, amount in rows}
        files, size = totals.get("files", (0, 0))
        running, lines = totals.get("running", (0, 0))
        ((parts, in_parts),) = self._database.read(
            "SELECT count(*), coalesce(sum(parts.bytes), 0) FROM uploads JOIN parts ON upload_id = uploads.id"
            " WHERE project = ? AND pending",
            project,
        )
        reserved = self._reserved.get(project, Holdings())
        return Holdings(
            running=running + reserved.running,
            lines=lines + reserved.lines,
            batches=totals.get("batches", (0, 0))[0] + reserved.running,
            files=files + reserved.files,
            bytes=size + int(str(in_parts)) + OBJECT_BYTES * (files + int(str(parts))) + reserved.bytes,
        )

    def uploads(self, project: str) -> int:
        """Pending uploads of a project."""
        ((number,),) = self._database.read(
            "SELECT count(*) FROM uploads WHERE project = ? AND pending AND expires_at > ?",
            project,
            int(self._clock()),
        )
        return int(str(number)) + self._reserved.get(project, Holdings()).uploads

    def keys(self, project: str) -> int:
        """Keys of a project that are not revoked."""
        ((number,),) = self._database.read("SELECT count(*) FROM keys WHERE project = ? AND NOT revoked", project)
        return int(str(number)) + self._reserved.get(project, Holdings()).keys

    def lines_left(self, batch: Batch) -> int:
        """Lines of a batch without a result; until ingest has counted them, those of its input file."""
        if batch.status.is_terminal:
            return 0
        if (counts := batch.request_counts).total:
            return counts.total - counts.completed - counts.failed
        rows = self._database.read("SELECT lines FROM files WHERE id = ?", batch.input_file_id)
        return int(str(rows[0][0] or 0)) if rows else 0

    def reserve(self, project: str, **more: int) -> None:
        """Reserve more, by the fields of `Holdings`; negative amounts release."""
        reserved = self._reserved[project]
        for name, amount in more.items():
            setattr(reserved, name, getattr(reserved, name) + amount)
        if reserved == Holdings():
            del self._reserved[project]


class Booking:
    """Reserves room for what a request creates; a context manager that releases it when the view shows it."""

    def __init__(self, quotas: Quotas, limits: Limits, project: str, space: DiskSpace) -> None:
        self._space = space
        self._quotas = quotas
        self._limits = limits
        self._project = project
        self._booked = Holdings()

    @property
    def project(self) -> str:
        """The project."""
        return self._project

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        booked, self._booked = self._booked, Holdings()
        self._quotas.reserve(self._project, **{name: -amount for name, amount in vars(booked).items()})

    def batch(self, lines: int) -> None:
        """Reserve a batch with its lines.

        Raises:
            ApiError: 429, there is no room for it in the project; 507, there is none on a disk.
        """
        self._accept(0)
        held, limits = self._quotas.of(self._project), self._limits
        self._within("batches_in_progress_max", held.running + 1, "batches in progress", "Wait until one is over.")
        self._within("batches_max", held.batches + 1, "batches", "Delete batches you do not need.")
        if held.lines + lines > limits.lines_enqueued_max:
            raise errors.limit_reached(
                "lines_enqueued_max",
                f"Project '{self._project}' has {held.lines} lines enqueued and may have "
                f"{limits.lines_enqueued_max}; this file has {lines} more. "
                "Wait until some are done, cancel a batch, or split the file.",
            )
        self._book(running=1, lines=lines)

    def upload(self) -> None:
        """Reserve an upload in parts.

        Raises:
            ApiError: 429, there is none.
        """
        pending = self._quotas.uploads(self._project)
        self._within("uploads_pending_max", pending + 1, "uploads in parts", "Complete or cancel one.")
        self._book(uploads=1)

    def key(self) -> None:
        """Reserve a key.

        Raises:
            ApiError: 429, there is none.
        """
        self._within("keys_max", self._quotas.keys(self._project) + 1, "keys", "Revoke those you do not need.")
        self._book(keys=1)

    def bytes(self, size: int) -> None:
        """Reserve an upload of so many bytes in all, less what is already reserved for it.

        Raises:
            ApiError: 429, there is no room for it in the project; 507, there is none on a disk.
        """
        more = cost_bytes(size) - self._booked.bytes
        if more <= 0:
            return
        self._accept(more)
        held = self._quotas.of(self._project)
        if not self._booked.files:
            self._within("files_max", held.files + 1, "files", "Delete files you do not need.")
        if held.bytes + more > self._limits.bytes_stored_max:
            raise errors.limit_reached(
                "bytes_stored_max",
                f"Project '{self._project}' stores {held.bytes - self._booked.bytes} bytes and may store "
                f"{self._limits.bytes_stored_max}; this upload has {size} more. Delete files you do not need.",
            )
        self._book(files=1 - self._booked.files, bytes=more)

    def _book(self, **more: int) -> None:
        self._quotas.reserve(self._project, **more)
        for name, amount in more.items():
            setattr(self._booked, name, getattr(self._booked, name) + amount)

    def _within(self, limit: str, wanted: int, what: str, mend: str) -> None:
        most = getattr(self._limits, limit)
        if wanted > most:
            raise errors.limit_reached(
                limit, f"Project '{self._project}' has {wanted - 1} {what} and may have {most}. {mend}"
            )

    def _accept(self, size: int) -> None:
        try:
            self._space.accept(size)
        except DiskFull as error:
            raise errors.from_store(error) from error
