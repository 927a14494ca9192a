"""Lists a page at a time: what a query asks for, and how a page is written."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import orjson
from pydantic import Field

from tidemill.api.requests.fields import Cursor, OneOf
from tidemill.api.requests.reading import WHOLE, Parameters

ORDERS = ("asc", "desc")
PAGE_BYTES_MAX = 4 << 20
"""A page ends before it has more, with `has_more`; the objects of one page may be large."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is asked for: at most `limit` objects that come after the object `after`."""

    limit: int
    after: str | None = None
    newest_first: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """An object of a list: its id and its JSON."""

    id: str
    body: bytes


class PageQuery(Parameters):
    """What the query of a list has; each list bounds `limit` itself."""

    limit: Annotated[int, Field(ge=1), WHOLE]
    """How many a page has at most."""
    after: Cursor | None = None
    """The id of the last object of the page before."""

    @property
    def page(self) -> Page:
        """The page that is asked for."""
        return Page(limit=self.limit, after=self.after)


class OrderedQuery(PageQuery):
    """The same of a list that can be read from its other end."""

    order: Annotated[str, OneOf(ORDERS)] = "desc"
    """By the time of creation."""

    @property
    def page(self) -> Page:
        """The page that is asked for."""
        return Page(limit=self.limit, after=self.after, newest_first=self.order == "desc")


def fitting(rows: Iterable[Row]) -> list[Row]:
    """Rows up to the first one that a page has no room for, that one included: at least two, where there are."""
    taken, size = [], 0
    for row in rows:
        taken.append(row)
        size += len(row.body)
        if size > PAGE_BYTES_MAX and len(taken) > 1:
            break
    return taken


def write(page: Page, rows: Sequence[Row]) -> bytes:
    """The JSON of a page: its rows, as many as fit into `PAGE_BYTES_MAX`, and at least one.

    Args:
        page: What was asked for.
        rows: Up to one more than `page.limit`, in order: the one more says that there is a next page.
    """
    wanted = rows[: page.limit]
    sizes = itertools.accumulate(len(row.body) for row in wanted)
    shown = wanted[: max(1, sum(size <= PAGE_BYTES_MAX for size in sizes))]
    ends = (orjson.dumps(shown[0].id), orjson.dumps(shown[-1].id)) if shown else (b"null", b"null")
    return b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}' % (
        b",".join(row.body for row in shown),
        *ends,
        b"true" if len(rows) > len(shown) else b"false",
    )
