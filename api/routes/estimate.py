"""The route that says beforehand what a batch of a file would use and cost."""

from decimal import Decimal, localcontext
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from tidemill.api import errors, responses
from tidemill.api.batches import token_estimate
from tidemill.api.batches.token_estimate import Sum, TokenEstimate
from tidemill.api.dependencies import Dependencies, Deps, ReadingCaller, body, chunks_from_store, json
from tidemill.api.requests import reading
from tidemill.api.requests.fields import Endpoint, Id
from tidemill.api.view import lookup
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.bill import bill, exact, plain

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class EstimateWish(reading.Body):
    """A batch that is not made."""

    input_file_id: Id
    """A file of the purpose `batch`."""
    endpoint: Endpoint


class CostRange(BaseModel):
    """Exact decimals as text, the discount taken off; a maximum that nothing bounds is null."""

    min: str
    max: str | None


class ModelEstimate(BaseModel):
    """The lines of one model."""

    model: str
    is_configured: bool
    """Whether there is such a model; a batch whose lines name another one fails."""
    lines: int
    input_tokens: int
    output_tokens_max: int | None
    """Null where a line gives no maximum."""
    lines_without_max: int
    media: int
    """Images, recordings and files, which are not counted as tokens."""
    cost: CostRange


class Figures(BaseModel):
    """What lines would use."""

    lines: int
    unreadable_lines: int
    """Lines that would fail the batch."""
    input_tokens: int
    output_tokens_max: int | None
    cost: CostRange
    models: list[ModelEstimate]
    method: str
    confidence: Literal["low"]


class Estimate(Figures):
    """What a batch of a file would use. Nothing is reserved, and nothing is checked but what is said here."""

    object: Literal["batch.estimate"] = "batch.estimate"
    input_file_id: str
    endpoint: str


@router.post(
    "/estimate",
    response_model=Estimate,
    responses={404: {"description": "There is no such file."}},
    openapi_extra={"requestBody": responses.body(EstimateWish)},
)
async def estimate(request: Request, deps: Deps, caller: ReadingCaller) -> Response:
    """Estimate lines, tokens and cost of a batch; a key with the role `read` may ask."""
    asked = reading.body(EstimateWish, await body(request), deps.settings)
    record = await lookup.file(deps.view, caller.project, asked.input_file_id)
    if record.file.purpose != "batch":
        raise errors.wrong_purpose("input_file_id", record.file.purpose)
    async with deps.estimates.turn(caller.project):
        found = await _reckoned(deps, record, asked.endpoint)
    shown = figures(deps, found).model_dump()
    return json(
        Estimate(input_file_id=asked.input_file_id, endpoint=asked.endpoint, **shown).model_dump_json().encode()
    )


async def _reckoned(deps: Dependencies, record: FileRecord, endpoint: str) -> TokenEstimate:
    found, splitter = TokenEstimate(endpoint), Splitter(deps.settings.line_bytes_max)

    def feed(chunk: bytes) -> None:
        for line in splitter.feed(chunk):
            found.take(line.data)

    def finish() -> None:
        for line in splitter.finish():
            found.take(line.data)

    try:
        async for chunk in chunks_from_store(deps.store.read(record.key)):
            await run_half_time(feed, chunk)
    except NotFound as error:
        raise errors.no_file(record.file.id) from error
    await run_half_time(finish)
    return found


def figures(deps: Dependencies, found: TokenEstimate) -> Figures:
    """What was reckoned, as it is shown."""
    models = [_model(deps, name, model) for name, model in found.models.items()]
    costs = [model.cost for model in models]
    is_bounded = all(cost.max is not None for cost in costs)
    with localcontext(exact()):
        least = sum((Decimal(cost.min) for cost in costs), Decimal(0))
        most = sum((Decimal(cost.max or 0) for cost in costs), Decimal(0))
    return Figures(
        lines=found.unreadable + sum(model.lines for model in models),
        unreadable_lines=found.unreadable,
        input_tokens=sum(model.input_tokens for model in models),
        output_tokens_max=sum(model.output_tokens_max or 0 for model in models) if is_bounded else None,
        cost=CostRange(min=plain(least), max=plain(most) if is_bounded else None),
        models=models,
        method=token_estimate.METHOD,
        confidence=token_estimate.CONFIDENCE,
    )


def _model(deps: Dependencies, name: str, found: Sum) -> ModelEstimate:
    tariff = deps.settings.tariff_of(name)
    is_bounded = not found.lines_without_max
    most = bill(found.input_tokens, found.output_tokens_max, tariff).cost
    return ModelEstimate(
        model=name,
        is_configured=name in deps.settings.models,
        lines=found.lines,
        input_tokens=found.input_tokens,
        output_tokens_max=found.output_tokens_max if is_bounded else None,
        lines_without_max=found.lines_without_max,
        media=found.media,
        cost=CostRange(min=plain(most.input), max=plain(most.total) if is_bounded else None),
    )
