"""The route that runs a part of the log once more.

1. The lines of the range are gathered on disk: each once, however often the log has it.
2. They are written into an input file, batch by batch, each in its own order (`api/reruns/replay_spool.py`).
3. The new batch is created as any other is (`api/batches/creation.py`). Of two tries of one request one counts,
   and the file of the other is deleted.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, ConfigDict, Field

from tidemill.api import errors, responses
from tidemill.api.access.auth import Principal
from tidemill.api.batches import batch_request, creation, file_removal
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.dependencies import Caller, Dependencies, Deps, body, json
from tidemill.api.requests import faults, reading
from tidemill.api.requests.fields import Endpoint, Model
from tidemill.api.reruns import log_range, reissue
from tidemill.api.reruns.replay import ALL, Where, gathered, reckoned
from tidemill.api.reruns.replay_spool import ReplaySpool, Sources
from tidemill.api.routes import estimate, rerun
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.log.messages import FileRecord, InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.access import Role, is_project
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Batch, ReplayRange

PROJECT_CHARS_MAX: Final = 64

router = APIRouter(prefix="/v1/replays", tags=["batches"])


def _whose(project: str) -> str:
    if project != ALL and not is_project(project):
        raise faults.wrong("invalid_value", f"it must be the name of a project, or {ALL} for all.")
    return project


class RangeSource(reading.Body):
    """Lines of a part of the log."""

    model_config = ConfigDict(extra="forbid")

    model: Model
    """Whose requests."""
    start: Annotated[str, Field(alias="from", max_length=log_range.EDGE_CHARS_MAX)]
    """A time in ISO 8601, or an offset of each partition; the first that is in it."""
    end: Annotated[str, Field(max_length=log_range.EDGE_CHARS_MAX)] | None = Field(None, alias="to")
    """As `from`, the first that is not in it; by default now."""
    project: Annotated[str, Field(max_length=PROJECT_CHARS_MAX), AfterValidator(_whose)] | None = None
    """Whose lines: an admin may name another project, or `*` for all."""
    endpoint: Endpoint | None = None
    """Only the lines that ask for this; needed where the range has several."""


class ReplayWish(rerun.Anew):
    """What is to be run once more."""

    source: RangeSource
    dry_run: bool = False
    """Only tell what it would be."""


class ReplayPlan(rerun.Plan):
    """What a replay would be."""

    object: Literal["replay.plan"] = "replay.plan"
    batches: int
    """Whose lines they are."""
    lost_lines: int
    """Large lines whose input file is deleted; not in `lines`; with any of them there is no replay."""
    skipped_lines: int
    """Lines of batches or input files that are deleted; not in `lines`, and not run."""


@router.post(
    "",
    response_model=Batch | ReplayPlan,
    responses={
        404: {"description": "There is no such model."},
        409: {"description": "The lines are not there any more."},
        **responses.LIMITED,
    },
    openapi_extra={"requestBody": responses.body(ReplayWish), **creation.DESCRIBED},
)
async def create(request: Request, deps: Deps, caller: Caller) -> Response:
    """Run a part of the log once more; a dry run says how many lines that is, and what they would use."""
    repeats = creation.repetition(request.headers)
    asked = reading.body(ReplayWish, await body(request), deps.settings)
    if not asked.dry_run:
        about = {name: str(value) for name, value in asked.source.model_dump(exclude_none=True).items()}
        named = about.get("project", ALL)
        await deps.trail.tell(
            request, caller, Action.REPLAY_CREATE, whose=None if named == ALL else named, **about
        )
    where = _where(caller, asked.source)
    made: Batch | ReplayPlan
    if asked.dry_run:
        made = await _planned(deps, caller.project, where, asked.model)
    else:
        made = await _made(deps, caller.project, where, asked, repeats)
    return json(made.model_dump_json().encode())


async def _planned(deps: Dependencies, project: str, where: Where, model: str | None) -> ReplayPlan:
    async with deps.estimates.turn(project):
        found, sums = await reckoned(deps, where, model)
    rerun.named_model(deps, model, found.endpoint())
    shown = estimate.figures(deps, sums).model_dump()
    return ReplayPlan(
        **shown,
        endpoint=found.endpoint(),
        is_too_large=shown["lines"] + found.lost > deps.settings.file_lines_max,
        batches=len(found.sources.by_id),
        lost_lines=found.lost,
        skipped_lines=found.skipped,
    )


async def _made(
    deps: Dependencies, project: str, where: Where, asked: ReplayWish, repeats: creation.Repetition
) -> Batch:
    model = asked.model
    wish = _draft(deps, where, asked)
    fingerprint = creation.fingerprint_of(wish.model_dump() | {"model": model, "project": where.project})
    if creation.claimed(deps, project, fingerprint, repeats) is not None:
        return await creation.create(deps, project, wish, _never, repeats, fingerprint=fingerprint)
    async with deps.replays.turn(project):
        with ReplaySpool() as spool:
            found = await gathered(deps, where, spool)
            endpoint = found.endpoint()
            rerun.named_model(deps, model, endpoint)
            new = wish.model_copy(update={"endpoint": endpoint, "input_file_id": ids.new_file_id()})
            with deps.booking(project) as booking:

                async def written() -> InputRef:
                    record = await _written(
                        deps, project, new, booking=booking, spool=spool, sources=found.sources, model=model
                    )
                    return InputRef(key=record.key, bytes=record.file.bytes)

                batch = await creation.create(deps, project, new, written, repeats, fingerprint=fingerprint)
    if batch.input_file_id != new.input_file_id and deps.view.file(project, new.input_file_id) is not None:
        await file_removal.remove(deps, new.input_file_id, file_key(new.input_file_id))
    return batch


async def _never() -> InputRef:
    raise AssertionError("the batch is claimed, so its input is known")


async def _written(
    deps: Dependencies,
    project: str,
    asked: BatchRequest,
    *,
    booking: Booking,
    spool: ReplaySpool,
    sources: Sources,
    model: str | None,
) -> FileRecord:
    """The input file of a replay."""
    booking.batch(sources.lines)
    now = int(deps.clock())
    file = reissue.blank(asked.input_file_id, f"replay-of-{asked.endpoint.rsplit('/', 1)[-1]}-{now}.jsonl", now)

    async def chunks() -> AsyncIterator[bytes]:
        ready = spool.chunks(sources, model)
        while (chunk := await asyncio.to_thread(next, ready, None)) is not None:
            yield chunk

    return await reissue.write(deps, booking, file, project, chunks())


def _where(caller: Principal, source: RangeSource) -> Where:
    """Which lines are wanted.

    Raises:
        ApiError: 400, an edge is none; 403, they are another project's.
    """
    project = source.project or caller.project
    if project != caller.project and not caller.is_operator:
        raise errors.forbidden(caller.role, Role.OPERATOR)
    return Where(
        asked=ReplayRange(model=source.model, start=source.start, end=source.end),
        start=log_range.edge(source.start, "source.from"),
        end=None if source.end is None else log_range.edge(source.end, "source.to"),
        project=project,
        endpoint=source.endpoint,
    )


def _draft(deps: Dependencies, where: Where, asked: ReplayWish) -> BatchRequest:
    """The new batch, as far as it does not depend on what is found."""
    return BatchRequest(
        endpoint=where.endpoint or "",
        input_file_id="",
        completion_window=asked.completion_window or deps.settings.windows[0],
        metadata=asked.metadata,
        output_expires_after=batch_request.expires_after(asked.output_expires_after),
        replay_range=where.asked,
    )
