"""What a project has at work and in store, and whether more of it may come.

What this process has said yes to counts at once, before the view shows it. Another api process sees it some
milliseconds later, so together they may go beyond a limit by what is under way at that moment.
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
class Load:
    """What counts against the limits of one project."""

    running: int = 0
    """Batches that are not over."""
    lines: int = 0
    """Lines of such batches that are not final."""
    batches: int = 0
    """All batches."""
    files: int = 0
    bytes: int = 0
    """Of files, and of uploads in parts that are not put together yet, with what each object costs beside them."""
    uploads: int = 0
    keys: int = 0


class Quotas:
    """In the file of the view, and what is on its way there."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._coming: defaultdict[str, Load] = defaultdict(Load)

    def of(self, project: str) -> Load:
        """What a project has, and what this process is about to give it."""
        rows = self._database.read("SELECT kind, number, amount FROM totals WHERE project = ?", project)
        totals = {kind: (int(str(number)), int(str(amount))) for kind, number, amount in rows}
        files, size = totals.get("files", (0, 0))
        running, lines = totals.get("running", (0, 0))
        ((parts, in_parts),) = self._database.read(
            "SELECT count(*), coalesce(sum(parts.bytes), 0) FROM uploads JOIN parts ON upload_id = uploads.id"
            " WHERE project = ? AND pending",
            project,
        )
        coming = self._coming.get(project, Load())
        return Load(
            running=running + coming.running,
            lines=lines + coming.lines,
            batches=totals.get("batches", (0, 0))[0] + coming.running,
            files=files + coming.files,
            bytes=size + int(str(in_parts)) + OBJECT_BYTES * (files + int(str(parts))) + coming.bytes,
        )

    def uploads(self, project: str) -> int:
        """Uploads of a project that are not put together yet."""
        ((number,),) = self._database.read(
            "SELECT count(*) FROM uploads WHERE project = ? AND pending AND expires_at > ?",
            project,
            int(self._clock()),
        )
        return int(str(number)) + self._coming.get(project, Load()).uploads

    def keys(self, project: str) -> int:
        """Keys of a project that are not revoked."""
        ((number,),) = self._database.read("SELECT count(*) FROM keys WHERE project = ? AND NOT revoked", project)
        return int(str(number)) + self._coming.get(project, Load()).keys

    def lines_left(self, batch: Batch) -> int:
        """Lines of a batch that are not final; until ingest has counted them, those of its input file."""
        if batch.status.is_terminal:
            return 0
        if (counts := batch.request_counts).total:
            return counts.total - counts.completed - counts.failed
        rows = self._database.read("SELECT lines FROM files WHERE id = ?", batch.input_file_id)
        return int(str(rows[0][0] or 0)) if rows else 0

    def come(self, project: str, **more: int) -> None:
        """So much more is coming, by the fields of `Load`; negative once it is there, or will not come."""
        coming = self._coming[project]
        for name, amount in more.items():
            setattr(coming, name, getattr(coming, name) + amount)
        if coming == Load():
            del self._coming[project]


class Booking:
    """Room for what one request brings: a context manager that gives it back once the view shows it."""

    def __init__(self, loads: Quotas, limits: Limits, project: str, space: DiskSpace) -> None:
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
        self._loads.come(self._project, **{name: -amount for name, amount in vars(booked).items()})

    def batch(self, lines: int) -> None:
        """Book a batch of so many lines.

        Raises:
            ApiError: 429, there is no room for it in the project; 507, there is none on a disk.
        """
        self._accept(0)
        load, limits = self._loads.of(self._project), self._limits
        self._within("batches_in_progress_max", load.running + 1, "batches in progress", "Wait until one is over.")
        self._within("batches_max", load.batches + 1, "batches", "Delete batches you do not need.")
        if load.lines + lines > limits.lines_enqueued_max:
            raise errors.beyond(
                "lines_enqueued_max",
                f"Project '{self._project}' has {load.lines} lines enqueued and may have "
                f"{limits.lines_enqueued_max}; this file has {lines} more. "
                "Wait until some are done, cancel a batch, or split the file.",
            )
        self._book(running=1, lines=lines)

    def upload(self) -> None:
        """Book an upload in parts.

        Raises:
            ApiError: 429, there is none.
        """
        pending = self._loads.uploads(self._project)
        self._within("uploads_pending_max", pending + 1, "uploads in parts", "Complete or cancel one.")
        self._book(uploads=1)

    def key(self) -> None:
        """Book a key.

        Raises:
            ApiError: 429, there is none.
        """
        self._within("keys_max", self._loads.keys(self._project) + 1, "keys", "Revoke those you do not need.")
        self._book(keys=1)

    def bytes(self, size: int) -> None:
        """Book an upload of so many bytes in all; what was booked for it before counts towards them.

        Raises:
            ApiError: 429, there is no room for it in the project; 507, there is none on a disk.
        """
        more = cost_bytes(size) - self._booked.bytes
        if more <= 0:
            return
        self._accept(more)
        load = self._loads.of(self._project)
        if not self._booked.files:
            self._within("files_max", load.files + 1, "files", "Delete files you do not need.")
        if load.bytes + more > self._limits.bytes_stored_max:
            raise errors.beyond(
                "bytes_stored_max",
                f"Project '{self._project}' stores {load.bytes - self._booked.bytes} bytes and may store "
                f"{self._limits.bytes_stored_max}; this upload has {size} more. Delete files you do not need.",
            )
        self._book(files=1 - self._booked.files, bytes=more)

    def _book(self, **more: int) -> None:
        self._loads.come(self._project, **more)
        for name, amount in more.items():
            setattr(self._booked, name, getattr(self._booked, name) + amount)

    def _within(self, limit: str, wanted: int, what: str, mend: str) -> None:
        most = getattr(self._limits, limit)
        if wanted > most:
            raise errors.beyond(
                limit, f"Project '{self._project}' has {wanted - 1} {what} and may have {most}. {mend}"
            )

    def _accept(self, size: int) -> None:
        try:
            self._space.accept(size)
        except DiskFull as error:
            raise errors.from_store(error) from error
