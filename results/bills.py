"""Usage and cost from sums of lines: of each model at the end of a batch, and of all so far."""

from collections.abc import Mapping
from functools import reduce
from operator import add

from tidemill.results.ports import TariffOf
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.schemas.resources.batch import Batch, InputTokensDetails, OutputTokensDetails, Progress, Usage
from tidemill.schemas.resources.bill import Bill, bill

Used = tuple[int, int, int, int]
"""The four numbers of usage of lines that succeeded (`LineMark.usage`)."""


def billed(batch: Batch, model: str | None, used: Used, tariff_of: TariffOf) -> tuple[Usage, Bill]:
    """The usage and the bill of lines of one model, at its current price."""
    read, cached, written, last = used
    unit = ENDPOINTS.get(batch.endpoint, UNKNOWN).unit
    usage = Usage(
        input_tokens=read,
        input_tokens_details=InputTokensDetails(cached_tokens=cached),
        output_tokens=written,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=last if unit == "tokens" else 0),
        total_tokens=read + written,
        images=last if unit == "images" else None,
        audio_seconds=last if unit == "audio_seconds" else None,
    )
    tariff = tariff_of(model, batch.completion_window)
    return usage, bill(read, written, tariff, images=usage.images or 0, audio_seconds=usage.audio_seconds or 0)


def so_far(progress: Progress, batch: Batch, used: Mapping[int, Used], tariff_of: TariffOf) -> Progress:
    """The progress with the usage and the cost of the lines so far, given by the numbers of their models."""
    if not used:
        return progress
    names: list[str | None] = [share.model for share in batch.tidemill.models]
    names = names or [batch.model]
    found = [billed(batch, names[number], one, tariff_of) for number, one in used.items()]
    usage = reduce(add, (usage for usage, _ in found))
    cost = reduce(add, (one.cost for _, one in found))
    return progress.model_copy(update={"usage": usage, "cost": cost})
