"""The route that runs lines of the past once more: those of a batch, or those of a part of the log.

Of the log:

1. The lines of the range are gathered on disk: each once, however often the log has it.
2. They are written into an input file, batch by batch, each in its own order (`spool.py`).
3. The new batch is created as any other is (`creation.py`). Of two tries of one request one counts, and the file
   of the other is deleted.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from tidemill.api import creation, draft, errors, removal, shapes
from tidemill.api.again import reissue, rerun, stretch
from tidemill.api.again.rerun import ALL, Where
from tidemill.api.again.selection import Kind, Selection
from tidemill.api.again.spool import Sources, Spool
from tidemill.api.auth import Principal
from tidemill.api.doors import Asking, Doors, Opened, body, json
from tidemill.api.draft import Draft
from tidemill.api.reckoning import Reckoning
from tidemill.api.requests import faults, reading
from tidemill.api.requests.fields import Endpoint, Id, Model
from tidemill.api.routes import estimate, retry
from tidemill.api.state import lookup
from tidemill.api.state.loads import Booking
from tidemill.schemas import ids
from tidemill.schemas.access import Role, is_project
from tidemill.schemas.audit import Action
from tidemill.schemas.batch import Batch, ReplayRange
from tidemill.schemas.messages import FileRecord, InputRef
from tidemill.schemas.part import file_key

PROJECT_CHARS_MAX: Final = 64

router = APIRouter(prefix="/v1/replays", tags=["batches"])


def _whose(project: str) -> str:
    if project != ALL and not is_project(project):
        raise faults.wrong("invalid_value", f"it must be the name of a project, or {ALL} for all.")
    return project


class BatchSource(reading.Body):
    """All lines of a batch."""

    model_config = ConfigDict(extra="forbid")

    batch: Id


class RangeSource(reading.Body):
    """Lines of a part of the log."""

    model_config = ConfigDict(extra="forbid")

    model: Model
    """Whose requests."""
    start: Annotated[str, Field(alias="from", max_length=stretch.EDGE_CHARS_MAX)]
    """A time in ISO 8601, or an offset of each partition; the first that is in it."""
    end: Annotated[str, Field(max_length=stretch.EDGE_CHARS_MAX)] | None = Field(None, alias="to")
    """As `from`, the first that is not in it; by default now."""
    project: Annotated[str, Field(max_length=PROJECT_CHARS_MAX), AfterValidator(_whose)] | None = None
    """Whose lines: an admin may name another project, or `*` for all."""
    endpoint: Endpoint | None = None
    """Only the lines that ask for this; needed where the range has several."""


_BATCH: Final = f"{faults.TAG}batch"
_RANGE: Final = f"{faults.TAG}range"


def _branch(value: Any) -> str:
    return _BATCH if isinstance(value, dict) and "batch" in value else _RANGE


class ReplayWish(retry.Anew):
    """What is to be run once more."""

    source: Annotated[
        Annotated[BatchSource, Tag(_BATCH)] | Annotated[RangeSource, Tag(_RANGE)], Discriminator(_branch)
    ]
    dry_run: bool = False
    """Only tell what it would be."""


class ReplayPlan(estimate.Figures):
    """What a replay would be; nothing was made."""

    object: Literal["replay.plan"] = "replay.plan"
    endpoint: str
    batches: int
    """Whose lines they are."""
    lost_lines: int
    """Large lines whose input file is deleted; not in `lines`; with any of them there is no replay."""
    skipped_lines: int
    """Lines of batches or input files that are deleted; not in `lines`, and not run."""
    is_too_large: bool
    """Whether the lines are more than a batch may have."""


@router.post(
    "",
    response_model=Batch | ReplayPlan,
    responses={
        404: {"description": "The project has no such batch, or there is no such model."},
        409: {"description": "The lines are not there any more."},
        **shapes.LIMITED,
    },
    openapi_extra={"requestBody": shapes.body(ReplayWish), **creation.DESCRIBED},
)
async def create(request: Request, doors: Opened, asking: Asking) -> Response:
    """Run lines of the past once more; a dry run tells how many they are, and what they would use."""
    repeats = creation.repetition(request.headers)
    asked = reading.body(ReplayWish, await body(request), doors.settings)
    made: Batch | ReplayPlan
    if not asked.dry_run:
        about = _told(asked.source)
        named = about.get("project", ALL)
        await doors.trail.tell(
            request, asking, Action.REPLAY_CREATE, whose=None if named == ALL else named, **about
        )
    if isinstance(source := asked.source, BatchSource):
        made = await _of_batch(doors, asking.project, source.batch, asked, repeats)
    else:
        made = await _of_range(doors, asking, _where(asking, source), asked, repeats)
    return json(made.model_dump_json().encode())


def _told(source: BatchSource | RangeSource) -> dict[str, str]:
    """The source of a replay as the audit trail has it."""
    return {name: str(value) for name, value in source.model_dump(exclude_none=True).items()}


async def _of_batch(
    doors: Doors,
    project: str,
    batch_id: str,
    asked: ReplayWish,
    repeats: creation.Repetition,
) -> Batch | ReplayPlan:
    batch = Batch.model_validate_json(await lookup.batch(doors, project, batch_id))
    wish = retry.wished(doors, batch, Selection(kind=Kind.ALL), asked)
    if not asked.dry_run:
        return await retry.again(doors, project, batch, wish, repeats)
    found = Reckoning(batch.endpoint)
    async with doors.estimates.turn(project):
        old = retry.old_input(doors, project, batch)
        async for chunk in retry.lines(doors, old, None, wish.model):
            await asyncio.to_thread(_reckon, found, chunk)
    return _plan(doors, found, endpoint=batch.endpoint, batches=1, lost=0, skipped=0)


async def _of_range(
    doors: Doors,
    asking: Principal,
    where: Where,
    asked: ReplayWish,
    repeats: creation.Repetition,
) -> Batch | ReplayPlan:
    model = asked.model
    if asked.dry_run:
        async with doors.estimates.turn(asking.project):
            found, sums = await rerun.reckoned(doors, where, model)
        retry.named_model(doors, model, found.endpoint())
        return _plan(
            doors,
            sums,
            endpoint=found.endpoint(),
            batches=len(found.sources.by_id),
            lost=found.lost,
            skipped=found.skipped,
        )
    project = asking.project
    wish = _draft(doors, where, asked)
    fingerprint = creation.fingerprint_of(wish.model_dump() | {"model": model, "project": where.project})
    if creation.claimed(doors, project, fingerprint, repeats) is not None:
        return await creation.create(doors, project, wish, _never, repeats, fingerprint=fingerprint)
    async with doors.replays.turn(project):
        with Spool() as spool:
            found = await rerun.gathered(doors, where, spool)
            endpoint = found.endpoint()
            retry.named_model(doors, model, endpoint)
            new = wish.model_copy(update={"endpoint": endpoint, "input_file_id": ids.new_file_id()})
            with doors.booking(project) as booking:

                async def written() -> InputRef:
                    record = await _written(
                        doors, project, new, booking=booking, spool=spool, sources=found.sources, model=model
                    )
                    return InputRef(key=record.key, bytes=record.file.bytes)

                batch = await creation.create(doors, project, new, written, repeats, fingerprint=fingerprint)
    if batch.input_file_id != new.input_file_id and doors.view.file(project, new.input_file_id) is not None:
        await removal.remove(doors, new.input_file_id, file_key(new.input_file_id))
    return batch


async def _never() -> InputRef:
    raise AssertionError("the batch is claimed, so its input is known")


async def _written(
    doors: Doors,
    project: str,
    asked: Draft,
    *,
    booking: Booking,
    spool: Spool,
    sources: Sources,
    model: str | None,
) -> FileRecord:
    """The input file of a replay."""
    booking.batch(sources.lines)
    now = int(doors.clock())
    file = reissue.blank(asked.input_file_id, f"replay-of-{asked.endpoint.rsplit('/', 1)[-1]}-{now}.jsonl", now)

    async def chunks() -> AsyncIterator[bytes]:
        ready = spool.chunks(sources, model)
        while (chunk := await asyncio.to_thread(next, ready, None)) is not None:
            yield chunk

    return await reissue.write(doors, booking, file, project, chunks())


def _where(asking: Principal, source: RangeSource) -> Where:
    """Which lines are wanted.

    Raises:
        ApiError: 400, an edge is none; 403, they are another project's.
    """
    project = source.project or asking.project
    if project != asking.project and not asking.is_operator:
        raise errors.forbidden(asking.role, Role.OPERATOR)
    return Where(
        asked=ReplayRange(model=source.model, start=source.start, end=source.end),
        start=stretch.edge(source.start, "source.from"),
        end=None if source.end is None else stretch.edge(source.end, "source.to"),
        project=project,
        endpoint=source.endpoint,
    )


def _draft(doors: Doors, where: Where, asked: ReplayWish) -> Draft:
    """The new batch, as far as it does not depend on what is found."""
    return Draft(
        endpoint=where.endpoint or "",
        input_file_id="",
        completion_window=asked.completion_window or doors.settings.windows[0],
        metadata=asked.metadata,
        output_expires_after=draft.expires_after(asked.output_expires_after),
        replay_range=where.asked,
    )


def _plan(doors: Doors, found: Reckoning, *, endpoint: str, batches: int, lost: int, skipped: int) -> ReplayPlan:
    shown = estimate.figures(doors, found).model_dump()
    lines = shown["lines"] + lost
    too_large = lines > doors.settings.file_lines_max
    return ReplayPlan(
        **shown,
        endpoint=endpoint,
        batches=batches,
        lost_lines=lost,
        skipped_lines=skipped,
        is_too_large=too_large,
    )


def _reckon(found: Reckoning, chunk: bytes) -> None:
    for line in chunk.split(b"\n"):
        if line:
            found.take(line)
