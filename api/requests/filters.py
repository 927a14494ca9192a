"""Queries of lists with filters, and their conditions in SQL."""

import re
from typing import Annotated, Final

from pydantic import Field

from tidemill.api.requests.fields import SECONDS_MAX, Endpoint, Metadata, OneOf, Project
from tidemill.api.requests.paging import OrderedQuery, PageQuery
from tidemill.api.requests.reading import WHOLE
from tidemill.schemas.bounds import Name
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.trouble import Trouble

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
AUDIT_LIMIT_DEFAULT: Final = 50
AUDIT_LIMIT_MAX: Final = 1_000
SEARCH_CHARS_MAX: Final = 128

_OTHER_LABEL: Final = (
    "EXISTS (SELECT 1 FROM labels AS other WHERE other.project = labels.project AND other.name = ?"
    " AND other.value = ? AND other.created_at = labels.created_at AND other.id = labels.id)"
)
_TROUBLES: Final = {
    Trouble.STALLED: "stalled",
    Trouble.LATE: "NOT over AND late_at <= ?",
    Trouble.FAILURES: "failures",
}
_ID_END: Final = re.compile("…?([0-9a-f]{6,})")
"""The end of an id, as the dashboard shows it."""
_Moment = Annotated[int, Field(ge=0, le=SECONDS_MAX), WHOLE]


class BatchesQuery(OrderedQuery):
    """The query of a list of batches: conditions that must all hold."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    status: Annotated[str, OneOf(list(Status))] | None = None
    """Only those of this status."""
    endpoint: Endpoint | None = None
    """Only those of this endpoint."""
    created_after: _Moment | None = None
    """Only those created later, Unix seconds."""
    created_before: _Moment | None = None
    """Only those created earlier, Unix seconds."""
    metadata: Metadata | None = None
    """`metadata[key]=value`: only those with this pair, and with all of several."""
    model: Name | None = None
    """Only those whose lines name this model."""
    search: Annotated[str, Field(max_length=SEARCH_CHARS_MAX)] | None = None
    """Only those whose id begins with this text or ends with it, if it has six hex digits or more, or whose name,
    metadata or file ids contain it."""
    trouble: Annotated[str, OneOf(list(Trouble))] | None = None
    """Only those that are `stalled`, that will be `late`, or that have `failures`."""
    single: Annotated[str, OneOf(("true", "false"))] = "false"
    """`true`: only single asynchronous requests, each a batch of one line; other lists leave these out."""

    @property
    def source(self) -> str:
        """The tables in SQL: a project has many batches, but few with a given label or in trouble."""
        if self.metadata:
            return "labels CROSS JOIN batches USING (id, project, created_at)"
        # By name: SQLite would read all batches of a status.
        return f"batches INDEXED BY batches_{Trouble(self.trouble)}" if self.trouble else "batches"

    def scan(self) -> tuple[str, list[object]] | None:
        """The conditions in SQL that no index answers, and their values."""
        parts: list[str] = []
        values: list[object] = []
        if self.model is not None:
            parts.append("instr(models, ?)")
            values.append(f"\n{self.model}\n")
        if self.search is not None:
            ways = ["substr(id, 1, length(?)) = ?", "instr(texts, ?)"]
            values += [self.search, self.search, self.search.lower()]
            if end := _ID_END.fullmatch(self.search):
                ways.append("substr(id, -length(?)) = ?")
                values += [end[1], end[1]]
            parts.append(f"({' OR '.join(ways)})")
        return (" AND ".join(parts), values) if parts else None

    def condition(self, now: float) -> tuple[str, list[object]]:
        """The conditions in SQL on the tables of `source`, and their values, at a time in Unix seconds."""
        parts: list[str] = ["single = ?"]
        values: list[object] = [self.single == "true"]
        for part, value in (
            ("status = ?", self.status),
            ("endpoint = ?", self.endpoint),
            ("created_at > ?", self.created_after),
            ("created_at < ?", self.created_before),
        ):
            if value is not None:
                parts.append(part)
                values.append(value)
        if self.trouble is not None:
            parts.append(_TROUBLES[Trouble(self.trouble)])
            values += [int(now)] if self.trouble == Trouble.LATE else []
        for place, pair in enumerate((self.metadata or {}).items()):
            parts.append(_OTHER_LABEL if place else "labels.name = ? AND labels.value = ?")
            values.extend(pair)
        return "".join(f" AND {part}" for part in parts), values


class AuditQuery(PageQuery):
    """The query of the audit trail."""

    limit: Annotated[int, Field(ge=1, le=AUDIT_LIMIT_MAX), WHOLE] = AUDIT_LIMIT_DEFAULT
    """How many a page has at most."""
    project: Project | None = None
    """Only records of this project; an operator gets those of all by default."""
    actor: Name | None = None
    """Only actions of this key, or of this person."""
    action: Annotated[str, OneOf(list(Action))] | None = None
    """Only this action."""
    target: Name | None = None
    """Only actions on this object."""

    def condition(self, project: str | None) -> tuple[str, list[object]]:
        """The conditions in SQL, and their values; without a project, records of all."""
        named = {"project": project, "actor": self.actor, "action": self.action, "target": self.target}
        given = {name: value for name, value in named.items() if value is not None}
        return " AND ".join(["1", *(f"{name} = ?" for name in given)]), list(given.values())
