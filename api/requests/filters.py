"""Filters of lists of batches."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tidemill.api.requests.fields import SECONDS_MAX, Metadata, OneOf
from tidemill.api.requests.paging import OrderedQuery
from tidemill.api.requests.reading import WHOLE
from tidemill.schemas.resources.batch import Status

LIMIT_DEFAULT = 20
LIMIT_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions that must all hold; both times are Unix seconds and exclusive."""

    status: Status | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def condition(self) -> tuple[str, list[object]]:
        """The conditions in SQL, and their values.

        With metadata they need `labels` joined with `batches`.
        """
        parts: list[str] = []
        values: list[object] = []
        for part, value in (
            ("status = ?", self.status),
            ("created_at > ?", self.created_after),
            ("created_at < ?", self.created_before),
        ):
            if value is not None:
                parts.append(part)
                values.append(value)
        for place, pair in enumerate(self.metadata):
            parts.append(_OTHER_LABEL if place else "labels.name = ? AND labels.value = ?")
            values.extend(pair)
        return "".join(f" AND {part}" for part in parts), values


_OTHER_LABEL = (
    "EXISTS (SELECT 1 FROM labels AS other WHERE other.project = labels.project AND other.name = ?"
    " AND other.value = ? AND other.created_at = labels.created_at AND other.id = labels.id)"
)
ALL = Filter()


_Moment = Annotated[int, Field(ge=0, le=SECONDS_MAX), WHOLE]


class BatchesQuery(OrderedQuery):
    """The query of a list of batches."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    status: Annotated[str, OneOf(list(Status))] | None = None
    """Only those of this status."""
    created_after: _Moment | None = None
    """Only those created later, Unix seconds."""
    created_before: _Moment | None = None
    """Only those created earlier, Unix seconds."""
    metadata: Metadata | None = None
    """`metadata[key]=value`: only those with this pair, and with all of several."""

    @property
    def wanted(self) -> Filter:
        """The filter."""
        return Filter(
            status=None if self.status is None else Status(self.status),
            created_after=self.created_after,
            created_before=self.created_before,
            metadata=tuple((self.metadata or {}).items()),
        )
