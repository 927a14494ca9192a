"""Pages of rows of the view."""

from collections.abc import Iterator

from tidemill.api import errors
from tidemill.api.requests.paging import Page
from tidemill.api.view.sqlite import Database

SCAN_ROWS_MAX = 2_000
"""Rows that a search reads for one request: some milliseconds."""


def page_rows(
    database: Database,
    table: str,
    where: str,
    values: list[object],
    page: Page,
    *,
    project: str | None,
    source: str = "",
    body: str = "body",
) -> Iterator[tuple[str, bytes]]:
    """Id and body of up to `page.limit` + 1 rows one by one; the caller must not await or write meanwhile.

    The table may be joined with others in `source`; without a project, `page.after` may be of any.

    Raises:
        ApiError: 400, `page.after` is not a row of the project.
    """
    sign, order = ("<", "DESC") if page.newest_first else (">", "ASC")
    if page.after is not None:
        at = _created_at(database, table, project, page.after)
        where, values = f"{where} AND (created_at, id) {sign} (?, ?)", [*values, at, page.after]
    yield from database.each(
        f"SELECT id, {body} FROM {source or table} WHERE {where}"  # noqa: S608  names and conditions of this package
        f" ORDER BY created_at {order}, id {order} LIMIT ?",
        *values, page.limit + 1,
    )  # fmt: skip


def scanned_rows(
    database: Database,
    table: str,
    where: tuple[str, list[object]],
    scan: tuple[str, list[object]],
    page: Page,
    *,
    project: str,
    source: str,
    body: str,
) -> tuple[list[tuple[str, bytes]], str | None]:
    """Up to `page.limit` rows that meet `scan`, among the next `SCAN_ROWS_MAX` rows of `page_rows` for `where`.

    Returns:
        Ids and bodies, and the id that the next page comes after; None if no row is left.

    Raises:
        ApiError: 400, `page.after` is not a row of the project.
    """
    window = Page(limit=SCAN_ROWS_MAX, after=page.after, newest_first=page.newest_first)
    columns = f"CASE WHEN {scan[0]} THEN {body} END"
    rows: list[tuple[str, bytes]] = []
    last = None
    # The values of the columns come first in the statement.
    values = [*scan[1], *where[1]]
    found = page_rows(database, table, where[0], values, window, project=project, source=source, body=columns)
    for count, (row_id, content) in enumerate(found):
        if count == SCAN_ROWS_MAX or len(rows) == page.limit:
            return rows, last
        last = row_id
        if content is not None:
            rows.append((row_id, content))
    return rows, None


def _created_at(database: Database, table: str, project: str | None, object_id: str) -> int:
    # A client may delete the batches of a page before it asks for the next one; of a new batch this process may
    # have only the claim.
    for source in (table, "erasures", "claims") if table == "batches" else (table,):
        statement = f"SELECT created_at FROM {source} WHERE id = ? AND coalesce(?, project) = project"  # noqa: S608  named above
        at: int | None = database.first(statement, object_id, project)
        if at is not None:
            return at
    raise errors.unknown_cursor(object_id)
