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
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import creation, draft, errors, removal, shapes
from tidemill.api.again import reissue, rerun, stretch
from tidemill.api.again.rerun import ALL, Where
from tidemill.api.again.selection import Kind, Selection
from tidemill.api.again.spool import Sources, Spool
from tidemill.api.auth import Principal
from tidemill.api.doors import Asking, Doors, Opened, body, json
from tidemill.api.draft import Draft
from tidemill.api.reckoning import Reckoning
from tidemill.api.routes import estimate, retry
from tidemill.api.state import lookup
from tidemill.api.state.loads import Booking
from tidemill.schemas import ids
from tidemill.schemas.access import Role, is_project
from tidemill.schemas.batch import ENDPOINTS, Batch, ReplayRange
from tidemill.schemas.messages import FileRecord, InputRef
from tidemill.schemas.part import file_key

MODEL_CHARS_MAX: Final = 256

router = APIRouter(prefix="/v1/replays", tags=["batches"])


class BatchSource(BaseModel):
    """All lines of a batch."""

    model_config = ConfigDict(extra="forbid")

    batch: str


class RangeSource(BaseModel):
    """Lines of a part of the log."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: Annotated[str, Field(max_length=MODEL_CHARS_MAX, min_length=1)]
    """Whose requests."""
    start: Annotated[str, Field(alias="from", max_length=stretch.EDGE_CHARS_MAX)]
    """A time in ISO 8601, or an offset of each partition; the first that is in it."""
    end: Annotated[str | None, Field(alias="to", max_length=stretch.EDGE_CHARS_MAX)] = None
    """As `from`, the first that is not in it; by default now."""
    project: str | None = None
    """Whose lines: an admin may name another project, or `*` for all."""
    endpoint: Annotated[str | None, Field(json_schema_extra={"enum": [*ENDPOINTS, None]})] = None
    """Only the lines that ask for this; needed where the range has several."""


class ReplayWish(BaseModel):
    """What is to be run once more."""

    source: BatchSource | RangeSource
    model: str | None = None
    """Another model than before."""
    completion_window: str | None = None
    metadata: shapes.Metadata | None = None
    output_expires_after: shapes.Expiry | None = None
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
    fields = draft.json_object(await body(request))
    source = _object(fields, "source")
    dry = fields.get("dry_run")
    if dry is not None and not isinstance(dry, bool):
        raise errors.wrong_type("dry_run", "a boolean", dry)
    made: Batch | ReplayPlan
    if "batch" in source:
        made = await _of_batch(doors, asking.project, source, fields, repeats, dry=bool(dry))
    else:
        made = await _of_range(doors, asking, source, fields, repeats, dry=bool(dry))
    return json(made.model_dump_json().encode())


async def _of_batch(
    doors: Doors,
    project: str,
    source: dict[str, Any],
    fields: dict[str, Any],
    repeats: creation.Repetition,
    *,
    dry: bool,
) -> Batch | ReplayPlan:
    named = draft.text(source, "batch", prefix="source.")
    batch = Batch.model_validate_json(await lookup.batch(doors, project, named))
    wish = retry.parse(doors, batch, Selection(kind=Kind.ALL), fields)
    if not dry:
        return await retry.again(doors, project, batch, wish, repeats)
    found = Reckoning(batch.endpoint)
    async with doors.estimates.turn(project):
        old = retry.old_input(doors, project, batch)
        async for chunk in retry.lines(doors, old, None, wish.model):
            await asyncio.to_thread(_reckon, found, chunk)
    return _plan(doors, found, endpoint=batch.endpoint, batches=1, lost=0)


async def _of_range(
    doors: Doors,
    asking: Principal,
    source: dict[str, Any],
    fields: dict[str, Any],
    repeats: creation.Repetition,
    *,
    dry: bool,
) -> Batch | ReplayPlan:
    where = _where(asking, source)
    model = draft.text(fields, "model") if fields.get("model") is not None else None
    if dry:
        async with doors.estimates.turn(asking.project):
            found, sums = await rerun.reckoned(doors, where, model)
        retry.named_model(doors, fields, found.endpoint())
        return _plan(doors, sums, endpoint=found.endpoint(), batches=len(found.sources.by_id), lost=found.lost)
    project = asking.project
    wish = _draft(doors, where, fields)
    fingerprint = creation.fingerprint_of(wish.model_dump() | {"model": model, "project": where.project})
    if creation.claimed(doors, project, fingerprint, repeats) is not None:
        return await creation.create(doors, project, wish, _never, repeats, fingerprint=fingerprint)
    async with doors.replays.turn(project):
        with Spool() as spool:
            found = await rerun.gathered(doors, where, spool)
            endpoint = found.endpoint()
            retry.named_model(doors, fields, endpoint)
            asked = wish.model_copy(update={"endpoint": endpoint, "input_file_id": ids.new_file_id()})
            with doors.booking(project) as booking:

                async def written() -> InputRef:
                    record = await _written(
                        doors, project, asked, booking=booking, spool=spool, sources=found.sources, model=model
                    )
                    return InputRef(key=record.key, bytes=record.file.bytes)

                batch = await creation.create(doors, project, asked, written, repeats, fingerprint=fingerprint)
    if batch.input_file_id != asked.input_file_id and doors.view.file(project, asked.input_file_id) is not None:
        await removal.remove(doors, asked.input_file_id, file_key(asked.input_file_id))
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


def _where(asking: Principal, source: dict[str, Any]) -> Where:
    """Read which lines are wanted.

    Raises:
        ApiError: 400 with the field's name; 403, they are another project's.
    """
    model = draft.text(source, "model", prefix="source.")
    if not 0 < len(model) <= MODEL_CHARS_MAX:
        raise errors.too_long("source.model", MODEL_CHARS_MAX, len(model))
    start = draft.text(source, "from", prefix="source.")
    end = draft.text(source, "to", prefix="source.") if source.get("to") is not None else None
    project = asking.project
    if source.get("project") is not None:
        project = draft.text(source, "project", prefix="source.")
        if project != ALL and not is_project(project):
            raise errors.invalid("Invalid 'source.project'.", param="source.project", code="invalid_value")
        if project != asking.project and asking.role is not Role.ADMIN:
            raise errors.forbidden(asking.role, Role.ADMIN)
    named = source.get("endpoint") is not None
    return Where(
        asked=ReplayRange(model=model, start=start, end=end),
        start=stretch.edge(start, "source.from"),
        end=None if end is None else stretch.edge(end, "source.to"),
        project=project,
        endpoint=draft.choice(source, "endpoint", ENDPOINTS, prefix="source.") if named else None,
    )


def _draft(doors: Doors, where: Where, fields: dict[str, Any]) -> Draft:
    """The new batch, as far as it does not depend on what is found.

    Raises:
        ApiError: 400 with the field's name.
    """
    windows = doors.settings.windows
    named = fields.get("completion_window") is not None
    return Draft(
        endpoint=where.endpoint or "",
        input_file_id="",
        completion_window=draft.choice(fields, "completion_window", windows) if named else windows[0],
        metadata=draft.metadata(fields.get("metadata")),
        output_expires_after=draft.expires_after(fields, "output_expires_after"),
        replay_range=where.asked,
    )


def _plan(doors: Doors, found: Reckoning, *, endpoint: str, batches: int, lost: int) -> ReplayPlan:
    shown = estimate.figures(doors, found).model_dump()
    lines = shown["lines"] + lost
    too_large = lines > doors.settings.file_lines_max
    return ReplayPlan(**shown, endpoint=endpoint, batches=batches, lost_lines=lost, is_too_large=too_large)


def _reckon(found: Reckoning, chunk: bytes) -> None:
    for line in chunk.split(b"\n"):
        if line:
            found.take(line)


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if (value := fields.get(name)) is None:
        raise errors.missing(name)
    if not isinstance(value, dict):
        raise errors.wrong_type(name, "an object", value)
    return value
