"""The routes of a batch's results, receipt, timeline and errors, while it runs and afterwards."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, Field

from tidemill.api import errors, lookup
from tidemill.api.batches import comparison, latest, report, result_pages
from tidemill.api.batches.comparison import Comparison, Outcome, Wanted
from tidemill.api.batches.result_search import LIMIT_DEFAULT, LIMIT_MAX, ResultsQuery, search
from tidemill.api.dependencies import Caller, Dependencies, Deps, from_store
from tidemill.api.http import download
from tidemill.api.openapi import Route
from tidemill.api.requests import faults, reading
from tidemill.api.requests.fields import BatchId, Id
from tidemill.api.requests.parts import Query
from tidemill.api.view.result_lines import Found, bounded
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, Status

router = APIRouter(prefix="/v1/batches/{batch_id}", tags=["batches"], route_class=Route)


class ResultLine(BaseModel):
    """A finished line: its index in the input, and the line of the output or error file."""

    index: int
    status: Literal["completed", "failed"]
    result: dict[str, Any]


class ResultPage(BaseModel):
    """Finished lines in the order of the input; `next_after` continues where this page, or its search, ends."""

    object: Literal["list"] = "list"
    data: list[ResultLine]
    has_more: bool
    next_after: int | None


class ComparedLine(BaseModel):
    """The results of the lines with a `custom_id` in two batches."""

    custom_id: str
    outcome: Outcome
    first: ResultLine | None
    second: ResultLine | None


class ComparisonPage(BaseModel):
    """Compared lines in the order of the inputs; `next_after` says how far the comparison has come."""

    object: Literal["list"] = "list"
    data: list[ComparedLine]
    counts: dict[Outcome, int]
    """Lines that this request has compared, also those that it does not show, by outcome."""
    has_more: bool
    next_after: str | None


def _check_outcomes(text: str) -> str:
    if not set(text.split(",")) <= set(Outcome):
        raise faults.none_of(tuple(Outcome))
    return text


class CompareQuery(reading.Parameters):
    """The query of a comparison."""

    other: Annotated[Id, Field(alias="with")]
    """The id of the second batch."""
    limit: Annotated[int, Field(ge=0, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many lines to show at most; with 0 they are only counted."""
    after: Annotated[str, Field(max_length=18, pattern=r"^(-1|[0-9]{1,8})_(-1|[0-9]{1,8})$")] = "-1_-1"
    """`next_after` of the page before."""
    outcome: Annotated[str, Field(max_length=128), AfterValidator(_check_outcomes)] | None = None
    """Show only lines with these outcomes, separated by commas; a page may then have few or none."""


@router.get("/results", response_model=ResultPage)
async def results(
    deps: Deps, caller: Caller, batch_id: BatchId, query: Annotated[ResultsQuery, Depends(Query(ResultsQuery))]
) -> Response:
    """List finished lines, also while the batch runs; they appear seconds after they end."""
    batch = await lookup.batch(deps.view, caller.project, batch_id)
    for _ in range(result_pages.TRIES_MAX):
        shown, end = await _shown(deps, caller.project, batch, query)
        try:
            # Before the status is sent: a failure after it can only truncate the answer.
            lines = await from_store(download.begun(deps.lines.read(shown)))
        except NotFound:
            batch = await latest.batch(deps, caller.project, batch_id)
            continue
        return StreamingResponse(_written(shown, lines, end), media_type="application/json")
    raise errors.unavailable("results of this batch")


async def _shown(
    deps: Dependencies, project: str, batch: Batch, query: ResultsQuery
) -> tuple[list[Found], int | None]:
    """The lines of a page, and the index after which more may come; None if none do."""
    if query.reads_lines:
        async with deps.gates.searches.turn(project):
            matches = await search(deps, project, batch, query)
        shown = bounded(matches.found)
        return shown, shown[-1].index if len(shown) < len(matches.found) else matches.searched_to
    found = await result_pages.page(
        deps, project, batch, after=query.after, limit=query.limit + 1, status=query.status
    )
    shown = bounded(found[: query.limit])
    return shown, shown[-1].index if len(found) > len(shown) else None


@router.get(
    "/compare", response_model=ComparisonPage, responses={409: {"description": "One of the batches is running."}}
)
async def compare_results(
    deps: Deps, caller: Caller, batch_id: BatchId, query: Annotated[CompareQuery, Depends(Query(CompareQuery))]
) -> Response:
    """Compare the results of two ended batches, line by line."""
    first = await latest.batch(deps, caller.project, batch_id)
    second = await latest.batch(deps, caller.project, query.other)
    for batch in (first, second):
        if not batch.status.is_terminal:
            raise errors.conflict(f"Cannot compare results of a batch with status '{batch.status}'.")
    after, _, second_after = query.after.partition("_")
    outcomes = frozenset(map(Outcome, query.outcome.split(","))) if query.outcome else frozenset(Outcome)
    wanted = Wanted(limit=query.limit, outcomes=outcomes)
    async with deps.gates.searches.turn(caller.project):
        found = await comparison.compare(
            deps, caller.project, (first, second), (int(after), int(second_after)), wanted
        )
    return Response(b"".join(_pieces(found)), media_type="application/json")


def _pieces(found: Comparison) -> Iterator[bytes]:
    yield b'{"object":"list","data":['
    for place, pair in enumerate(found.pairs):
        known = pair.first or pair.second
        name = orjson.dumps(known.custom_id if known else "")
        sides = tuple(
            b"null" if side is None else _line_json(side.found, side.text) for side in (pair.first, pair.second)
        )
        comma = b"," if place else b""
        yield b'%b{"custom_id":%b,"outcome":"%b","first":%b,"second":%b}' % (
            comma, name, pair.outcome.encode(), *sides,
        )  # fmt: skip
    has_more, cursor = (b"false", b"null") if found.end is None else (b"true", b'"%d_%d"' % found.end)
    yield b'],"counts":%b,"has_more":%b,"next_after":%b}' % (
        orjson.dumps(found.counts, option=orjson.OPT_NON_STR_KEYS),
        has_more,
        cursor,
    )


@router.get("/receipt", response_model=report.ReceiptReport)
async def receipt(deps: Deps, caller: Caller, batch_id: BatchId) -> report.ReceiptReport:
    """Get the reconciliation of a batch: lines in, lines out, errors, and the SHA-256 of each file."""
    return report.receipt(await latest.batch(deps, caller.project, batch_id))


@router.get("/timeline", response_model=report.Timeline)
async def timeline(deps: Deps, caller: Caller, batch_id: BatchId) -> report.Timeline:
    """Get the events of a batch."""
    return report.timeline(await latest.batch(deps, caller.project, batch_id))


@router.get("/errors", response_model=report.ErrorReport)
async def grouped_errors(deps: Deps, caller: Caller, batch_id: BatchId) -> report.ErrorReport:
    """Get failed lines by code, with samples; for a failed batch, the errors of its input."""
    batch = await latest.batch(deps, caller.project, batch_id)
    if batch.status is Status.FAILED:
        return report.refused(batch)
    if report.unrun_code(batch) is not None:
        source = deps.view.file(caller.project, batch.input_file_id)
        return report.ErrorReport(total=0, unfinished=source.lines or 0 if source else 0, data=[])
    groups = report.ErrorGroups()
    async for found, text in result_pages.every(deps, caller.project, batch, status="failed"):
        groups.add(found.index, text)
    return groups.report()


async def _written(shown: list[Found], lines: AsyncIterator[bytes], end: int | None) -> AsyncIterator[bytes]:
    """The page; more lines may come after the index `end`, or none without it."""
    yield b'{"object":"list","data":['
    for place, found in enumerate(shown):
        yield (b"," if place else b"") + _line_json(found, await result_pages.next_line(lines))
    last = shown[-1].index if end is None and shown else end
    yield b'],"has_more":%b,"next_after":%b}' % (b"false" if end is None else b"true", orjson.dumps(last))


def _line_json(found: Found, text: bytes) -> bytes:
    status = b"failed" if found.failed else b"completed"
    return b'{"index":%d,"status":"%b","result":%b}' % (found.index, status, text)
