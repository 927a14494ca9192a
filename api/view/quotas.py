"""Reserves room within the quotas of projects.

Objects that this process has accepted count at once, before the view shows them. Other api processes see them
milliseconds later, so together the processes may exceed a limit by as much as they accept in that time.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final, Self

from tidemill import quotas
from tidemill.api import errors
from tidemill.api.view.sqlite import Database
from tidemill.configuration.projects import Limits
from tidemill.quotas import Quota, QuotaExceeded
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.file import OBJECT_BYTES, cost_bytes
from tidemill.storage.disk_space import DiskFull, DiskSpace
from tidemill.wording import counted

_TOTAL: Final = "FROM totals WHERE project = ?1 AND kind"
_HELD: Final = {
    Quota.BATCHES_IN_PROGRESS: f"SELECT number {_TOTAL} = 'running'",
    Quota.BATCHES: f"SELECT number {_TOTAL} = 'batches'",
    Quota.LINES: f"SELECT amount {_TOTAL} = 'running'",
    Quota.FILES: f"SELECT number {_TOTAL} = 'files'",
    Quota.BYTES: (
        f"SELECT sum(bytes) FROM (SELECT amount + {OBJECT_BYTES} * number AS bytes {_TOTAL}"  # noqa: S608
        " IN ('files', 'growing')"
        f" UNION ALL SELECT parts.bytes + {OBJECT_BYTES} FROM uploads JOIN parts ON upload_id = uploads.id"
        " WHERE project = ?1)"
    ),
    Quota.UPLOADS: "SELECT count(*) FROM uploads WHERE project = ?1 AND pending AND expires_at > ?2",
    Quota.KEYS: (
        "SELECT count(*) FROM keys WHERE project = ?1 AND NOT revoked AND (expires_at IS NULL OR expires_at > ?2)"
    ),
}
"""By quota, the query for the amount that the view shows of a project."""
_DELETING: Final = "`DELETE /v1/files/ID`, or the page Files of the dashboard"
_HINTS: Final = {
    Quota.BATCHES_IN_PROGRESS: "Wait until one is over.",
    Quota.BATCHES: "Delete batches you do not need (`tidemill delete`).",
    Quota.LINES: "Wait until some are done, cancel a batch, or split the file.",
    Quota.FILES: f"Delete files you do not need: {_DELETING}.",
    Quota.BYTES: f"Delete files you do not need: {_DELETING}. Inputs of open batches count, too.",
    Quota.UPLOADS: "Complete or cancel one.",
    Quota.KEYS: "Revoke those you do not need.",
    Quota.WEBHOOKS: "Delete those you do not need.",
}


class Quotas:
    """The amounts that projects hold: those in the view, and those that requests in progress have reserved."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._reserved: defaultdict[str, Counter[Quota]] = defaultdict(Counter)

    def held(self, project: str, quota: Quota) -> int:
        """The amount that counts against a quota of a project."""
        now = int(self._clock())
        shown: int = (self._database.first(_HELD[quota], project, now) or 0) if quota in _HELD else 0
        return shown + (self._reserved[project][quota] if project in self._reserved else 0)

    def lines_left(self, project: str, batch: Batch) -> int:
        """Lines of a batch without a result; until ingest has counted them, those of its input file."""
        if batch.status.is_terminal:
            return 0
        if batch.request_counts.total:
            return batch.request_counts.pending
        # A batch may name any id as its input, also that of another project's file.
        statement = "SELECT lines FROM files WHERE id = ? AND project = ?"
        return self._database.first(statement, batch.input_file_id, project) or 0

    def reserve(self, project: str, amounts: Mapping[Quota, int]) -> None:
        """Reserve amounts for a project; negative ones release."""
        reserved = self._reserved[project]
        reserved.update(amounts)
        if not any(reserved.values()):
            del self._reserved[project]


class Booking:
    """Reserves room for what a request creates; a context manager that releases it when the view shows it.

    Without room it raises `ApiError`: 429 if the project has none, 507 if a disk has none for bytes or a batch.
    """

    def __init__(self, held: Quotas, limits: Limits, project: str, space: DiskSpace) -> None:
        self._quotas = held
        self._limits = limits
        self.project = project
        self._space = space
        self._booked: Counter[Quota] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._quotas.reserve(self.project, {quota: -amount for quota, amount in self._booked.items()})
        self._booked.clear()

    def reserve_batch(self, lines: int) -> None:
        """Reserve a batch with its lines."""
        self._check_disks(0)
        self._book(
            {Quota.BATCHES_IN_PROGRESS: 1, Quota.BATCHES: 1, Quota.LINES: lines}, f"; this file has {lines:,} more"
        )

    def reserve_append(self, lines: int, size: int) -> None:
        """Reserve lines of a batch that exists, and their bytes."""
        self._check_disks(size)
        self._book({Quota.LINES: lines}, f"; this append has {lines:,} more")
        self._book({Quota.BYTES: size}, f"; this append has {counted(size, 'byte')} more")

    def reserve_upload(self) -> None:
        """Reserve an upload in parts."""
        self._book({Quota.UPLOADS: 1})

    def reserve_key(self) -> None:
        """Reserve a key."""
        self._book({Quota.KEYS: 1})

    def reserve_webhook_endpoint(self, known: int) -> None:
        """Reserve a webhook endpoint beside those that are known, which the view does not have."""
        self._book({Quota.WEBHOOKS: 1}, known=known)

    def reserve_bytes(self, size: int) -> None:
        """Reserve a file of this size; bytes that are already reserved for it do not count again."""
        if (more := cost_bytes(size) - self._booked[Quota.BYTES]) > 0:
            self._check_disks(more)
            self._book(
                {Quota.FILES: 1, Quota.BYTES: cost_bytes(size)},
                f"; this upload takes at least {counted(cost_bytes(size), 'byte')} more",
            )

    def _book(self, amounts: Mapping[Quota, int], detail: str = "", known: int = 0) -> None:
        """Raise the reservation to these amounts.

        `detail` explains a refusal for lines or bytes; `known` is what there is beside what the view has.
        """
        booked = self._booked
        more = {
            quota: amount for quota, amount in amounts.items() if quota not in booked or amount > booked[quota]
        }
        for quota, amount in more.items():
            held = known + self._quotas.held(self.project, quota) - booked[quota]
            try:
                quotas.check(quota, held, amount, self._limits)
            except QuotaExceeded as error:
                about = detail if quota in {Quota.LINES, Quota.BYTES} else ""
                message = f"Project '{self.project}' {error}{about}. {_HINTS[quota]}"
                raise errors.limit_reached(quota, message) from error
        added = {quota: amount - booked[quota] for quota, amount in more.items()}
        self._quotas.reserve(self.project, added)
        booked.update(added)

    def _check_disks(self, size: int) -> None:
        try:
            self._space.accept(size)
        except DiskFull as error:
            raise errors.from_store(error) from error
