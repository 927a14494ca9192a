"""The routes that run lines again: lines of a finished batch, or of a range of the log.

A dry run changes nothing, so a key with the role `read` is enough.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, ConfigDict, Field

from tidemill.api.access.auth import ALL_PROJECTS, Principal
from tidemill.api.batches import latest
from tidemill.api.batches.creation import CreateHeaders
from tidemill.api.batches.token_estimate import Figures, figures
from tidemill.api.dependencies import (
    Dependencies,
    Deps,
    ReadingCaller,
    StoringBody,
    json,
)
from tidemill.api.openapi import Route
from tidemill.api.requests import faults
from tidemill.api.requests.fields import AnyProject, BatchId, Endpoint, Model
from tidemill.api.requests.reading import Body
from tidemill.api.reruns import log_range, replay, rerun, selection
from tidemill.api.reruns.log_range import LogRange
from tidemill.api.reruns.rerun import RerunOptions
from tidemill.api.reruns.selection import Kind
from tidemill.schemas.resources.access import Role, is_project
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Batch, ReplayRange

router = APIRouter(prefix="/v1", tags=["batches"], route_class=Route)


class RerunRequest(RerunOptions):
    """Which lines to run again, and how."""

    lines: selection.Lines = Kind.UNFINISHED.value
    of_model: Model | None = None
    """Only lines of this model of the batch."""
    dry_run: bool = False
    """Only return the plan."""


class Plan(Figures):
    """The plan of a new batch."""

    endpoint: str
    is_too_large: bool
    """Whether the lines exceed the limit of a batch."""


class RerunPlan(Plan):
    """The plan of a rerun."""

    object: Literal["rerun.plan"] = "rerun.plan"


@router.post(
    "/batches/{batch_id}/rerun",
    response_model=Batch | RerunPlan,
    responses={409: {"description": "The batch has not ended, or has no such lines."}},
)
async def rerun_batch(
    *,
    request: Request,
    deps: Deps,
    caller: ReadingCaller,
    batch_id: BatchId,
    headers: CreateHeaders,
    body: Annotated[RerunRequest, Depends(StoringBody(RerunRequest))],
) -> Response:
    """Run lines of a finished batch again: the unfinished ones by default."""
    if not body.dry_run:
        caller.require(Role.WRITE)
    batch = await latest.batch(deps, caller.project, batch_id)
    new = rerun.rerun_of(deps, batch, selection.of(body.lines), body, body.of_model)
    if body.dry_run:
        found = await rerun.estimate(deps, caller.project, new)
        shown = figures(deps.settings, deps.catalog.contents, found, new.request.completion_window)
        too_large = shown.lines > deps.settings.file_lines_max
        plan = RerunPlan(**shown.model_dump(), endpoint=batch.endpoint, is_too_large=too_large)
        return json(plan)
    await deps.trail.record(request, caller, Action.BATCH_RERUN, batch_id)
    made = await rerun.create(deps, caller.project, new, headers)
    return json(made)


def _check_edge(text: str) -> str:
    try:
        log_range.edge(text)
    except ValueError as error:
        raise faults.wrong("invalid_value", f"{error}.") from None
    return text


def _check_project(project: str) -> str:
    if project != ALL_PROJECTS and not is_project(project):
        raise faults.wrong("invalid_value", f"it must be the name of a project, or {ALL_PROJECTS} for all.")
    return project


_Edge = Annotated[str, Field(max_length=log_range.EDGE_CHARS_MAX), AfterValidator(_check_edge)]


class RangeSource(Body):
    """A range of the log."""

    model_config = ConfigDict(extra="forbid")

    model: Model
    """The model of the requests."""
    start: Annotated[_Edge, Field(alias="from")]
    """A time in ISO 8601, or an offset of each partition; inclusive."""
    end: _Edge | None = Field(None, alias="to")
    """Like `from`, exclusive; by default now."""
    project: Annotated[AnyProject, AfterValidator(_check_project)] | None = None
    """The project of the lines; an operator may name another one, or `*` for all."""
    endpoint: Endpoint | None = None
    """Only lines of this endpoint; required if the range has several."""


class ReplayRequest(RerunOptions):
    """A range to run again, and how."""

    source: RangeSource
    dry_run: bool = False
    """Only return the plan."""


class ReplayPlan(Plan):
    """The plan of a replay."""

    object: Literal["replay.plan"] = "replay.plan"
    batches: int
    """The number of batches of the lines."""
    lost_lines: int
    """Large lines whose input file is deleted; not in `lines`. With any of them the range cannot be replayed."""
    skipped_lines: int
    """Lines of deleted batches or input files; not in `lines`, and not run."""


@router.post(
    "/replays",
    response_model=Batch | ReplayPlan,
    responses={
        404: {"description": "There is no such model."},
        409: {"description": "There are no such lines, or they are deleted."},
    },
)
async def replay_range(
    *,
    request: Request,
    deps: Deps,
    caller: ReadingCaller,
    headers: CreateHeaders,
    body: Annotated[ReplayRequest, Depends(StoringBody(ReplayRequest))],
) -> Response:
    """Run a range of the log again; a dry run only returns the plan."""
    lines = _range(caller, body.source)
    if not body.dry_run:
        caller.require(Role.WRITE)
        about = {name: str(value) for name, value in body.source.model_dump(exclude_none=True).items()}
        owner = None if body.source.project == ALL_PROJECTS else body.source.project
        await deps.trail.record(request, caller, Action.REPLAY_CREATE, owner=owner, **about)
    made: Batch | ReplayPlan
    if body.dry_run:
        made = await _planned(deps, caller.project, lines, body)
    else:
        made = await replay.create(deps, caller.project, lines, body, headers)
    return json(made)


async def _planned(deps: Dependencies, project: str, lines: LogRange, options: RerunOptions) -> ReplayPlan:
    async with deps.gates.estimates.turn(project):
        found, sums = await log_range.estimate(deps, lines, options.model)
    rerun.named_model(deps, options.model, found.endpoint())
    shown = figures(deps.settings, deps.catalog.contents, sums, options.completion_window).model_dump()
    return ReplayPlan(
        **shown,
        endpoint=found.endpoint(),
        is_too_large=shown["lines"] + found.lost > deps.settings.file_lines_max,
        batches=len(found.sources.by_id),
        lost_lines=found.lost,
        skipped_lines=found.skipped,
    )


def _range(caller: Principal, source: RangeSource) -> LogRange:
    """The range of a request.

    Raises:
        ApiError: 403, they are another project's.
    """
    return LogRange(
        shown=ReplayRange(model=source.model, start=source.start, end=source.end),
        start=log_range.edge(source.start),
        end=None if source.end is None else log_range.edge(source.end),
        project=caller.chosen(source.project),
        endpoint=source.endpoint,
    )
