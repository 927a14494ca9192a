"""Pages of lists: their query and their JSON."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel, Field

from tidemill.api.requests.fields import Cursor, OneOf
from tidemill.api.requests.reading import WHOLE, Parameters

T = TypeVar("T")

ORDERS = ("asc", "desc")
PAGE_BYTES_MAX = 4 << 20
"""A page ends before it exceeds this, with `has_more`; objects may be large."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: at most `limit` objects that come after the object `after`."""

    limit: int
    after: str | None = None
    newest_first: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """An object of a list: its id and its JSON."""

    id: str
    body: bytes


class ListPage(BaseModel, Generic[T]):
    """A page of a list; `after` with `last_id` continues it."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PageQuery(Parameters):
    """The query of a list; each list sets its own bound of `limit`."""

    limit: Annotated[int, Field(ge=1), WHOLE]
    """How many a page has at most."""
    after: Cursor | None = None
    """The id of the last object of the page before."""

    @property
    def page(self) -> Page:
        """The page."""
        return Page(limit=self.limit, after=self.after)


class OrderedQuery(PageQuery):
    """The query of a list with an order."""

    order: Annotated[str, OneOf(ORDERS)] = "desc"
    """By the time of creation."""

    @property
    def page(self) -> Page:
        """The page."""
        return Page(limit=self.limit, after=self.after, newest_first=self.order == "desc")


def fitting(rows: Iterable[Row]) -> list[Row]:
    """Rows up to and including the first that does not fit into a page; at least two, if there are."""
    taken, size = [], 0
    for row in rows:
        taken.append(row)
        size += len(row.body)
        if size > PAGE_BYTES_MAX and len(taken) > 1:
            break
    return taken


def of_page(page: Page, rows: Sequence[Row]) -> Sequence[Row]:
    """The first of these rows that a page shows: as many as fit into `PAGE_BYTES_MAX`, and at least one."""
    wanted = rows[: page.limit]
    sizes = itertools.accumulate(len(row.body) for row in wanted)
    return wanted[: max(1, sum(size <= PAGE_BYTES_MAX for size in sizes))]


def write(page: Page, rows: Sequence[Row], searched_to: str | None = None) -> bytes:
    """The JSON of a page.

    One row more than `page.limit` means that there is a next page, and so does the id that a search has come to.
    """
    shown = of_page(page, rows)
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    if len(rows) == len(shown) and searched_to is not None:
        last = searched_to
    ends = (orjson.dumps(first), orjson.dumps(last))
    return b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}' % (
        b",".join(row.body for row in shown),
        *ends,
        b"true" if len(rows) > len(shown) or searched_to is not None else b"false",
    )
