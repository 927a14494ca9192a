"""The audit trail, folded from the log."""

from dataclasses import dataclass
from typing import Final

from tidemill.api.requests.paging import Page, Row
from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import AuditRecord
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.audit import KEPT_DAYS

KEPT_SECONDS: Final = KEPT_DAYS * 86_400


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A filter of records; None is any."""

    project: str | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None

    def condition(self) -> tuple[str, list[object]]:
        """The filter in SQL, and its values."""
        named = {name: value for name, value in vars(self).items() if value is not None}
        return " AND ".join(["1", *(f"{name} = ?" for name in named)]), list(named.values())


class Audit:
    """Records in the file of the view; old ones are deleted."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def rows(self, wanted: Wanted, page: Page) -> list[Row] | None:
        """Up to `page.limit` + 1 records, the newest first; None if `page.after` is not one of them."""
        where, values = wanted.condition()
        if page.after is not None:
            found = self._database.read(f"SELECT at FROM audit WHERE id = ? AND {where}", page.after, *values)  # noqa: S608
            if not found:
                return None
            where, values = f"{where} AND (at, id) < (?, ?)", [*values, found[0][0], page.after]
        rows = self._database.read(
            f"SELECT id, body FROM audit WHERE {where} ORDER BY at DESC, id DESC LIMIT ?",  # noqa: S608
            *values, page.limit + 1,
        )  # fmt: skip
        return [Row(id=str(name), body=_bytes(body)) for name, body in rows]

    def newest(self, action: str) -> AuditRecord | None:
        """The last record of an action."""
        rows = self._database.read(
            "SELECT body FROM audit WHERE action = ? ORDER BY at DESC, id DESC LIMIT 1", action
        )
        return codec.decode_audit(_bytes(rows[0][0])) if rows else None

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of the topic.

        Raises:
            DecodeError: It cannot be read.
        """
        del key, offset
        record = codec.decode_audit(value)
        self._database.write(
            "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)",
            record.id, record.at, record.project, record.actor, record.action, record.target, codec.encode(record),
        )  # fmt: skip
        self._database.write("DELETE FROM audit WHERE at < ?", int(self._clock()) - KEPT_SECONDS)


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
