"""The routes of a batch's results, receipt, timeline and errors, while it runs and afterwards."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tidemill.api.batches import report, result_pages
from tidemill.api.dependencies import Caller, Dependencies, Deps, ViewDep
from tidemill.api.openapi import Route
from tidemill.api.requests import reading
from tidemill.api.requests.fields import BatchId, OneOf
from tidemill.api.requests.parts import Query
from tidemill.api.view import lookup
from tidemill.api.view.result_lines import Found, bounded
from tidemill.schemas.resources.batch import Status

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
INDEX_MAX: Final = 10_000_000
STATUSES: Final = ("completed", "failed")
ERRORS_PAGE: Final = 1_000
"""Failed lines that are read at a time."""

router = APIRouter(prefix="/v1/batches/{batch_id}", tags=["batches"], route_class=Route)


class ResultLine(BaseModel):
    """A finished line: its index in the input, and the line of the output or error file."""

    index: int
    status: Literal["completed", "failed"]
    result: dict[str, Any]


class ResultPage(BaseModel):
    """Finished lines in the order of the input; `next_after` continues where this page ends."""

    object: Literal["list"] = "list"
    data: list[ResultLine]
    has_more: bool
    next_after: int | None


class ResultsQuery(reading.Parameters):
    """The query of results."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    after: Annotated[int, Field(ge=-1, le=INDEX_MAX), reading.WHOLE] = -1
    """`next_after` of the page before."""
    status: Annotated[str, OneOf(STATUSES)] | None = None
    """Only those lines."""


@router.get("/results", response_model=ResultPage)
async def results(
    deps: Deps, caller: Caller, batch_id: BatchId, query: Annotated[ResultsQuery, Depends(Query(ResultsQuery))]
) -> Response:
    """List finished lines, also while the batch runs; they appear seconds after they end."""
    batch = await lookup.batch(deps.view, caller.project, batch_id)
    found = await result_pages.page(
        deps, caller.project, batch, after=query.after, limit=query.limit + 1, status=query.status
    )
    shown = bounded(found[: query.limit])
    return StreamingResponse(_written(deps, shown, len(found) > len(shown)), media_type="application/json")


@router.get("/receipt", response_model=report.ReceiptReport)
async def receipt(view: ViewDep, caller: Caller, batch_id: BatchId) -> report.ReceiptReport:
    """Get the reconciliation of a batch: lines in, lines out, errors, and the SHA-256 of each file."""
    return report.receipt(await lookup.batch(view, caller.project, batch_id))


@router.get("/timeline", response_model=report.Timeline)
async def timeline(view: ViewDep, caller: Caller, batch_id: BatchId) -> report.Timeline:
    """Get the events of a batch."""
    return report.timeline(await lookup.batch(view, caller.project, batch_id))


@router.get("/errors", response_model=report.ErrorReport)
async def grouped_errors(deps: Deps, caller: Caller, batch_id: BatchId) -> report.ErrorReport:
    """Get failed lines by code, with samples; for a failed batch, the errors of its input."""
    batch = await lookup.batch(deps.view, caller.project, batch_id)
    if batch.status is Status.FAILED:
        return report.refused(batch)
    if batch.status is Status.EXPIRED and batch.tidemill.receipt is None:
        # It expired before ingest validated its lines.
        source = deps.view.file(caller.project, batch.input_file_id)
        return report.ErrorReport(total=0, unfinished=source.lines or 0 if source else 0, data=[])
    groups, after = report.ErrorGroups(), -1
    while True:
        found = await result_pages.page(
            deps, caller.project, batch, after=after, limit=ERRORS_PAGE, status="failed"
        )
        if not (found := bounded(found)):
            return groups.report()
        lines = deps.lines.read(found)
        for line in found:
            groups.add(line.index, await result_pages.next_line(lines))
        after = found[-1].index


async def _written(deps: Dependencies, shown: list[Found], has_more: bool) -> AsyncIterator[bytes]:
    yield b'{"object":"list","data":['
    place = 0
    async for line in deps.lines.read(shown):
        found = shown[place]
        status = b"failed" if found.failed else b"completed"
        comma = b"," if place else b""
        yield b'%b{"index":%d,"status":"%b","result":%b}' % (comma, found.index, status, line)
        place += 1
    last = b"%d" % shown[-1].index if shown else b"null"
    yield b'],"has_more":%b,"next_after":%b}' % (b"true" if has_more else b"false", last)
