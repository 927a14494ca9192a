"""The routes of throughput and queues: how many lines ended when, and how many wait where."""

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from tidemill.api import lookup
from tidemill.api.access.auth import ALL_PROJECTS
from tidemill.api.dependencies import Caller, Deps, ViewDep, json
from tidemill.api.openapi import Route
from tidemill.api.requests import reading
from tidemill.api.requests.fields import AnyProject, BatchId, OneOf
from tidemill.api.requests.parts import Query
from tidemill.api.view.throughput import MINUTE, Point, ProjectInterval, QueueRow
from tidemill.schemas.resources.batch import Status

Stage = Literal["ingest", "processors", "results"]

WINDOWS: Final = {"1h": (3_600, 60), "24h": (86_400, 300), "7d": (7 * 86_400, 3_600)}
"""Windows, with their seconds and those of their intervals."""
RATE_SECONDS: Final = 300
"""Rates of queues are means of this time."""
PROJECTS_MAX: Final = 100
QUEUES_MAX: Final = 1_000
STAGES: Final[dict[str, Stage]] = {
    Status.VALIDATING: "ingest",
    Status.IN_PROGRESS: "processors",
    Status.CANCELLING: "processors",
    Status.FINALIZING: "results",
}
"""The stage that works on the batches of a status."""

router = APIRouter(tags=["throughput"], route_class=Route)


class BatchPoint(BaseModel):
    """The lines of a batch that ended in an interval, and their calls."""

    at: int
    """The start of the interval, Unix seconds."""
    completed: int
    failed: int
    retried: int
    """Calls of these lines beyond the first of each."""
    limit: int | None
    """Concurrency limit of its model's servers at the end of the interval; null if unknown."""


class BatchThroughput(BaseModel):
    """The throughput of a batch, the oldest interval first; intervals in which no line ended are left out."""

    object: Literal["batch.throughput"] = "batch.throughput"
    batch_id: str
    interval_seconds: int
    data: list[BatchPoint]
    """At most 240."""


class ProjectLines(BaseModel):
    """The lines of a project that ended in the window."""

    project: str
    lines: int


class ProjectThroughput(BaseModel):
    """The throughput of a project, or of all, the oldest interval first; intervals without lines are left out."""

    object: Literal["throughput"] = "throughput"
    project: str
    """`*` for all."""
    start: int
    """The start of the first interval, Unix seconds."""
    end: int
    interval_seconds: int
    data: list[ProjectInterval]
    projects: list[ProjectLines]
    """For all projects: the 100 with the most lines."""


class Queue(BaseModel):
    """Batches that wait or are at work at one stage, for one model."""

    stage: Stage
    """The stage that works on them: ingest validates, processors call the servers, results writes the files."""
    status: str
    """The status of the batches."""
    model: str | None
    """Null before validation; several models of one batch are separated by commas."""
    batches: int
    lines: int
    """Lines without a result; before validation, the newlines of the files."""
    oldest_at: int
    """When the batch that has been there longest was created, Unix seconds."""
    lines_per_second: float | None
    """The present rate of these batches; null if it is not known yet."""
    lag_seconds: float | None
    """How long the lines take at this rate; null without one, or at a rate of 0."""


class Queues(BaseModel):
    """The queues of each stage."""

    object: Literal["queues"] = "queues"
    lines_per_second_in: float
    """Lines of batches that passed validation: a mean of the last five minutes, or of those since the first."""
    lines_per_second_out: float
    """Lines that ended, as a mean of the same time."""
    data: list[Queue]
    """The first 1,000."""


class WindowQuery(reading.Parameters):
    """The query of the throughput of projects."""

    window: Annotated[str, OneOf(list(WINDOWS))] = "24h"
    """How far back: intervals of a minute, of five minutes, or of an hour."""
    project: AnyProject | None = None
    """Another project, or `*` for all; for an operator."""


class QueuesQuery(reading.Parameters):
    """The query of queues."""

    project: AnyProject | None = None
    """Another project, or `*` for all; for an operator."""


@router.get("/v1/batches/{batch_id}/throughput", response_model=BatchThroughput)
async def of_batch(view: ViewDep, caller: Caller, batch_id: BatchId) -> Response:
    """Get how many lines of a batch ended when."""
    batch = await lookup.batch(view, caller.project, batch_id)
    step, points = view.throughput.of_batch(batch)
    return json(BatchThroughput(batch_id=batch.id, interval_seconds=step, data=list(_intervals(points))))


def _intervals(points: list[Point]) -> Iterable[BatchPoint]:
    for (_, *before, _), (at, *after, limit) in pairwise([(0, 0, 0, 0, None), *points]):
        completed, failed, retried = (max(0, now - then) for then, now in zip(before, after, strict=True))
        if completed or failed:
            yield BatchPoint(at=at, completed=completed, failed=failed, retried=retried, limit=limit)


@router.get("/v1/throughput", response_model=ProjectThroughput)
async def of_projects(
    deps: Deps, caller: Caller, query: Annotated[WindowQuery, Depends(Query(WindowQuery))]
) -> Response:
    """Get how many lines of a project, or of all, ended when."""
    project = caller.chosen(query.project)
    seconds, step = WINDOWS[query.window]
    end = int(deps.clock())
    start = (end - seconds) // step * step
    async with deps.gates.sums.turn(caller.project):
        found = await asyncio.to_thread(deps.view.throughput.intervals, project, start, step)
        others = [] if project else await asyncio.to_thread(deps.view.throughput.busiest, start, PROJECTS_MAX)
    return json(
        ProjectThroughput(
            project=project or ALL_PROJECTS, start=start, end=end, interval_seconds=step,
            data=found,
            projects=[ProjectLines(project=name, lines=lines) for name, lines in others],
        )
    )  # fmt: skip


@router.get("/v1/queues", response_model=Queues)
async def queues(
    deps: Deps, caller: Caller, query: Annotated[QueuesQuery, Depends(Query(QueuesQuery))]
) -> Response:
    """Get how many lines of a project, or of all, wait at which stage, and for how long."""
    project = caller.chosen(query.project)
    now = int(deps.clock())
    start = (now - RATE_SECONDS) // MINUTE * MINUTE
    async with deps.gates.sums.turn(caller.project):
        rows = await asyncio.to_thread(deps.view.throughput.queues, project, QUEUES_MAX)
        recent = await asyncio.to_thread(deps.view.throughput.intervals, project, start, MINUTE)
    # Intervals are whole minutes, and the last is incomplete; a new installation has fewer of them.
    seconds = max(MINUTE, now - max(start, deps.view.throughput.began_at()))
    return json(
        Queues(
            lines_per_second_in=sum(one.started for one in recent) / seconds,
            lines_per_second_out=sum(one.completed + one.failed for one in recent) / seconds,
            data=[_queue(row) for row in rows],
        )
    )


def _queue(row: QueueRow) -> Queue:
    rate = row.lines_per_second
    return Queue(
        stage=STAGES[row.status], status=row.status, model=", ".join(row.models.split()) or None,
        batches=row.batches, lines=row.lines, oldest_at=row.oldest_at, lines_per_second=rate,
        lag_seconds=row.lines / rate if rate else None,
    )  # fmt: skip
