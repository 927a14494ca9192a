"""The audit trail, folded from the log."""

from typing import Final

from tidemill.api.requests.filters import AuditQuery
from tidemill.api.requests.paging import Row
from tidemill.api.view.sqlite import Database, page_rows
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import AuditRecord
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.audit import KEPT_DAYS, Action

KEPT_SECONDS: Final = KEPT_DAYS * 86_400


class Audit:
    """Audit records in the file of the view, for `KEPT_DAYS`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def rows(self, project: str | None, query: AuditQuery) -> list[Row]:
        """Up to `query.limit` + 1 records of a project or of all, the newest first.

        Raises:
            ApiError: 400, `query.after` is not one of them.
        """
        found = page_rows(self._database, "audit", *query.condition(project), query.page, project=project)
        return [Row(id=record_id, body=body) for record_id, body in found]

    def newest(self, action: str) -> AuditRecord | None:
        """The last record of an action."""
        body = self._database.first(
            "SELECT body FROM audit WHERE action = ? ORDER BY created_at DESC, id DESC LIMIT 1", action
        )
        return None if body is None else codec.decode_audit(body)

    def fold(self, key: str, value: bytes | None, offset: int) -> str:
        """Fold a record of the topic, and return its id; raises `DecodeError`."""
        del key, offset
        record = codec.decode_audit(value)
        self._database.write(
            "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)",
            record.id, record.at, record.project, record.actor, record.action, record.target, codec.encode(record),
        )  # fmt: skip
        self._database.write("DELETE FROM audit WHERE created_at < ?", int(self._clock()) - KEPT_SECONDS)
        if record.action == Action.SESSION_END:
            self.end_session(record.target, record.at)
        return record.id

    def end_session(self, session_id: str, at: int) -> None:
        """Mark a session of the dashboard as ended.

        The mark stays far longer than any session lasts: a clock that is ahead for a moment must open none again.
        """
        self._database.write("INSERT OR IGNORE INTO sessions_ended VALUES (?, ?)", session_id, at)
        self._database.write("DELETE FROM sessions_ended WHERE ended_at < ?", int(self._clock()) - KEPT_SECONDS)

    def has_ended(self, session_id: str) -> bool:
        """Whether a session of the dashboard was ended."""
        return self._database.first("SELECT 1 FROM sessions_ended WHERE id = ?", session_id) is not None
