"""Lists a page at a time: what a query asks for, and how a page is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from tidemill.api import errors

ORDERS = ("asc", "desc")
_INTEGER = re.compile(r"[+-]?\d{1,18}\Z", re.ASCII)


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


def parse(query: Mapping[str, str], *, default: int, maximum: int) -> Page:
    """Read `limit`, `after` and `order` of a query; an empty value counts as not given.

    Raises:
        ApiError: 400, one of them cannot be used.
    """
    limit = integer("limit", query.get("limit") or str(default), minimum=1, maximum=maximum)
    order = query.get("order") or "desc"
    if order not in ORDERS:
        raise errors.wrong_value("order", order, ORDERS)
    return Page(limit=limit, after=query.get("after") or None, newest_first=order == "desc")


def integer(param: str, text: str, *, minimum: int, maximum: int) -> int:
    """A whole number of a query or a form.

    Raises:
        ApiError: 400, it is none, or out of range.
    """
    if _INTEGER.match(text) is None:
        raise errors.wrong_type(param, "an integer", text)
    value = int(text)
    if value < minimum:
        raise errors.too_small(param, minimum, value)
    if value > maximum:
        raise errors.too_large(param, maximum, value)
    return value


def write(page: Page, rows: Sequence[Row]) -> bytes:
    """The JSON of a page.

    Args:
        page: What was asked for.
        rows: Up to one more than `page.limit`, in order: the one more says that there is a next page.
    """
    shown = rows[: page.limit]
    ends = (orjson.dumps(shown[0].id), orjson.dumps(shown[-1].id)) if shown else (b"null", b"null")
    return b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}' % (
        b",".join(row.body for row in shown),
        *ends,
        b"true" if len(rows) > page.limit else b"false",
    )
