"""The route of usage: tokens and costs, summed over the ledger."""

import asyncio
import base64
import binascii
from dataclasses import asdict
from typing import Annotated, Final, Literal

import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, BaseModel, Field

from tidemill.api import errors
from tidemill.api.dependencies import Caller, Deps, json
from tidemill.api.openapi import Route
from tidemill.api.requests import faults, paging, reading
from tidemill.api.requests.fields import AnyProject
from tidemill.api.requests.paging import ListPage, Page, Row
from tidemill.api.requests.parts import Query
from tidemill.api.view.ledger import DIMENSIONS, LedgerQuery, Sum

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
TIME_MAX: Final = 1 << 40
CURSOR_CHARS_MAX: Final = 2_560
"""A cursor has a value of each dimension; the name of a model is the longest."""
GROUPS_CHARS_MAX: Final = 64
DEFAULT_SECONDS: Final = 30 * 86_400
"""The default range of a query."""

router = APIRouter(prefix="/v1/usage", tags=["usage"], route_class=Route)


class CostSum(BaseModel):
    """Exact decimals as text, in the unit of the operator's prices: `total` = `input` + `output` + `units`."""

    total: str
    input: str
    output: str
    units: str
    """Cost of images and audio."""


class UsageSum(BaseModel):
    """The sum of a group of finished batches; dimensions without grouping are null."""

    object: Literal["usage"] = "usage"
    id: str
    project: str | None = None
    model: str | None = None
    day: str | None = None
    batch_id: str | None = None
    batches: int
    lines: int
    """Lines that succeeded."""
    copies: int
    """Of these, lines that have the answer to an equal one."""
    input_tokens: int
    cached_tokens: int
    """Input tokens that the server read from its cache."""
    output_tokens: int
    reasoning_tokens: int
    """Output tokens that were reasoning."""
    total_tokens: int
    images: int
    audio_seconds: int
    cost: CostSum


_GROUPS: Final = "|".join(DIMENSIONS)
_BY: Final = f"^(({_GROUPS})(,({_GROUPS}))*)?$"
_When = Annotated[int, Field(ge=0, le=TIME_MAX), reading.WHOLE]


def _by(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in DIMENSIONS:
            raise faults.none_of(tuple(DIMENSIONS))
    return names


def _check_groups(text: str) -> str:
    _by(text)
    return text


class UsageQuery(reading.Parameters):
    """The query of usage."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    after: Annotated[str, Field(max_length=CURSOR_CHARS_MAX)] | None = None
    """The id of the last object of the page before."""
    start_time: _When | None = None
    """Batches that ended then or later, Unix seconds; by default those of 30 days."""
    end_time: _When = TIME_MAX
    """Batches that ended before, Unix seconds."""
    group_by: Annotated[
        str, Field(max_length=GROUPS_CHARS_MAX, json_schema_extra={"pattern": _BY}), AfterValidator(_check_groups)
    ] = ""
    """Dimensions to group by, separated by commas; without it there is one sum."""
    project: AnyProject | None = None
    """Another project, or * for all; for an operator."""


@router.get("", response_model=ListPage[UsageSum])
async def index(deps: Deps, caller: Caller, query: Annotated[UsageQuery, Depends(Query(UsageQuery))]) -> Response:
    """Sum the usage of finished batches: tokens, images, seconds of audio, succeeded lines, and cost."""
    by, project = _by(query.group_by), caller.chosen(query.project)
    start = int(deps.clock()) - DEFAULT_SECONDS if query.start_time is None else query.start_time
    wanted = LedgerQuery(
        project=project,
        start=start,
        end=query.end_time,
        by=by,
        after=None if query.after is None else _group(query.after, by),
        limit=query.limit + 1,
    )
    page = Page(limit=query.limit, after=query.after)
    async with deps.gates.sums.turn(caller.project):
        sums = await asyncio.to_thread(deps.view.ledger.sums, wanted)
    return json(paging.write(page, [_row(found, by) for found in sums]))


def _row(found: Sum, by: tuple[str, ...]) -> Row:
    group: dict[str, str | None] = dict(zip(by, found.group, strict=True))
    cost = CostSum(total=found.cost, input=found.cost_input, output=found.cost_output, units=found.cost_units)
    shown = UsageSum(
        id=_id(found.group),
        project=group.get("project"),
        # A batch that ended before its validation has no model, and used nothing.
        model=group.get("model") or None,
        day=group.get("day"),
        batch_id=group.get("batch"),
        total_tokens=found.input_tokens + found.output_tokens,
        **asdict(found) | {"cost": cost},
    )
    return Row(id=shown.id, body=shown.model_dump_json().encode())


def _id(group: tuple[str, ...]) -> str:
    """A group as a cursor: its values in URL-safe characters."""
    return "usage_" + base64.urlsafe_b64encode(orjson.dumps(group)).decode().rstrip("=")


def _group(cursor: str, by: tuple[str, ...]) -> tuple[str, ...]:
    text = cursor.removeprefix("usage_")
    try:
        found = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError) as error:
        raise errors.unknown_cursor(cursor) from error
    if not isinstance(found, list) or len(found) != len(by) or not all(isinstance(value, str) for value in found):
        raise errors.unknown_cursor(cursor)
    return tuple(found)
