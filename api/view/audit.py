"""The audit trail, folded from the log."""

from dataclasses import dataclass
from typing import Final

from tidemill.api import errors
from tidemill.api.requests.paging import Page, Row
from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import AuditRecord
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.audit import KEPT_DAYS

KEPT_SECONDS: Final = KEPT_DAYS * 86_400


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Selects records; None is any."""

    project: str | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None

    def condition(self) -> tuple[str, list[object]]:
        """The filter in SQL, and its values."""
        named = {name: value for name, value in vars(self).items() if value is not None}
        return " AND ".join(["1", *(f"{name} = ?" for name in named)]), list(named.values())


class Audit:
    """Audit records in the file of the view, for `KEPT_DAYS`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def rows(self, wanted: AuditFilter, page: Page) -> list[Row]:
        """Up to `page.limit` + 1 records, the newest first.

        Raises:
            ApiError: 400, `page.after` is not one of them.
        """
        where, values = wanted.condition()
        if page.after is not None:
            at = self._database.first(f"SELECT at FROM audit WHERE id = ? AND {where}", page.after, *values)  # noqa: S608
            if at is None:
                raise errors.unknown_cursor(page.after)
            where, values = f"{where} AND (at, id) < (?, ?)", [*values, at, page.after]
        rows = self._database.read(
            f"SELECT id, body FROM audit WHERE {where} ORDER BY at DESC, id DESC LIMIT ?",  # noqa: S608
            *values, page.limit + 1,
        )  # fmt: skip
        return [Row(id=record_id, body=body) for record_id, body in rows]

    def newest(self, action: str) -> AuditRecord | None:
        """The last record of an action."""
        body = self._database.first(
            "SELECT body FROM audit WHERE action = ? ORDER BY at DESC, id DESC LIMIT 1", action
        )
        return None if body is None else codec.decode_audit(body)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of the topic; raises `DecodeError`."""
        del key, offset
        record = codec.decode_audit(value)
        self._database.write(
            "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)",
            record.id, record.at, record.project, record.actor, record.action, record.target, codec.encode(record),
        )  # fmt: skip
        self._database.write("DELETE FROM audit WHERE at < ?", int(self._clock()) - KEPT_SECONDS)
