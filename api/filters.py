"""Which batches of a list are wanted."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tidemill.api import draft, errors, paging
from tidemill.schemas.batch import Status

SECONDS_MAX = 1 << 53
"""The latest time that can be asked for, as Unix seconds: the last whole number that JSON has everywhere."""
_METADATA = re.compile(r"metadata\[(.*)\]\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """All of it must hold; both times are Unix seconds and excluded themselves."""

    status: Status | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def condition(self) -> tuple[str, list[object]]:
        """What a query has beside its `WHERE` of the project, and the values of it."""
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
        for pair in self.metadata:
            parts.append("id IN (SELECT batch_id FROM labels WHERE name = ? AND value = ?)")
            values.extend(pair)
        return "".join(f" AND {part}" for part in parts), values


ALL = Filter()


def parse(query: Iterable[tuple[str, str]]) -> Filter:
    """Read `status`, `created_after`, `created_before` and any `metadata[key]` of a query.

    An empty value counts as not given, except that of metadata; what else a query has is let pass.

    Raises:
        ApiError: 400, one of them cannot be used.
    """
    pairs = list(query)
    named = {name: value for name, value in pairs if value}
    if (status := named.get("status")) is not None and status not in list(Status):
        raise errors.wrong_value("status", status, list(Status))
    metadata = {match[1]: value for name, value in pairs if (match := _METADATA.match(name))}
    return Filter(
        status=None if status is None else Status(status),
        created_after=_time(named, "created_after"),
        created_before=_time(named, "created_before"),
        metadata=tuple((draft.metadata(metadata) or {}).items()),
    )


def _time(named: dict[str, str], name: str) -> int | None:
    if (text := named.get(name)) is None:
        return None
    return paging.integer(name, text, minimum=0, maximum=SECONDS_MAX)
