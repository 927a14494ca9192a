"""Usage and cost from sums of lines: of each model at the end of a batch, and of all so far."""

from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from operator import add

from tidemill.configuration.catalog import PriceError
from tidemill.results.resources import TariffOf
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.schemas.resources.batch import Batch, InputTokensDetails, OutputTokensDetails, Progress, Usage
from tidemill.schemas.resources.bill import Bill, Cost, Tariff, bill

Used = tuple[int, int, int, int]
"""The four numbers of usage of lines that succeeded (`LineMark.usage`)."""


def usage_of(batch: Batch, used: Used) -> Usage:
    """The usage of lines."""
    read, cached, written, last = used
    unit = ENDPOINTS.get(batch.endpoint, UNKNOWN).unit
    return Usage(
        input_tokens=read,
        input_tokens_details=InputTokensDetails(cached_tokens=cached),
        output_tokens=written,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=last if unit == "tokens" else 0),
        total_tokens=read + written,
        images=last if unit == "images" else None,
        audio_seconds=last if unit == "audio_seconds" else None,
    )


def bill_of(usage: Usage, tariff: Tariff) -> Bill:
    """The bill of this usage at the price of its model."""
    read, written = usage.input_tokens, usage.output_tokens
    return bill(read, written, tariff, images=usage.images or 0, audio_seconds=usage.audio_seconds or 0)


def so_far(progress: Progress, batch: Batch, used: Mapping[int, Used], tariff_of: TariffOf) -> Progress:
    """The progress with the usage of the lines so far, by the number of their model, and the cost if known."""
    if not used:
        return progress
    names: list[str | None] = [share.model for share in batch.tidemill.models]
    names = names or [batch.model]
    usages = {number: usage_of(batch, one) for number, one in used.items()}
    cost: Cost | None = None
    with suppress(PriceError):
        bills = [
            bill_of(usage, tariff_of(names[number], batch.completion_window)) for number, usage in usages.items()
        ]
        cost = reduce(add, (one.cost for one in bills))
    return progress.model_copy(update={"usage": reduce(add, usages.values()), "cost": cost})
