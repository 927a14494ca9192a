"""The settings of projects: their limits and their shares of the calls."""

from typing import Annotated

from pydantic import AfterValidator, Field

from tidemill.configuration.misconfigured import Table
from tidemill.schemas import headers
from tidemill.schemas.bounds import BATCH_MODELS_MAX, FORWARDED_HEADERS_MAX


def _check_forwardable(name: str) -> str:
    if not headers.is_forwardable(name := name.lower()):
        raise ValueError(f"{name} is not forwarded: it is Tidemill's own, a secret, or of a single request")
    return name


ForwardedHeaders = Annotated[
    tuple[Annotated[str, AfterValidator(_check_forwardable)], ...], Field(max_length=FORWARDED_HEADERS_MAX)
]
"""Names of headers, in lower case."""


class Limits(Table):
    """Limits of a project. A request that would exceed one gets a 429; a file with too many models fails."""

    batches_in_progress_max: Annotated[int, Field(ge=0)] = 1000
    """Running batches."""
    batches_at_work_max: Annotated[int, Field(ge=1)] | None = None
    """Batches that may be at work; further ones wait in `validating`, in the order of their creation. Streams of
    direct producers do not count. By default as many as may run."""
    lines_enqueued_max: Annotated[int, Field(ge=0)] = 5_000_000
    """Unfinished lines of running batches."""
    bytes_stored_max: Annotated[int, Field(ge=0)] = 1 << 40
    """Bytes of its files, inputs and results, plus 4 KiB for each (records, rows, the rest of a disk block).
    Results may exceed it; uploads may not."""
    files_max: Annotated[int, Field(ge=0)] = 1_000_000
    """Its files, inputs and results. Results may exceed it; uploads may not."""
    models_per_batch_max: Annotated[int, Field(ge=1, le=BATCH_MODELS_MAX)] = 1
    """Models that the lines of a batch may name. With 1, a line that names a second one fails its batch, as at
    OpenAI."""
    batches_max: Annotated[int, Field(ge=0)] = 1_000_000
    """Its batches, finished ones included."""
    uploads_pending_max: Annotated[int, Field(ge=0)] = 1_000
    """Its incomplete multipart uploads."""
    keys_max: Annotated[int, Field(ge=0)] = 1_000
    """Its valid keys."""
    webhook_endpoints_max: Annotated[int, Field(ge=0, le=1_000)] = 20
    """Its webhook endpoints."""
    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 1_000
    """Average rate of requests of one key to one api process. Reading an object counts as 1; a list, a download
    or a change as 5; a request that goes through all lines of a batch as 20."""
    requests_burst: Annotated[int, Field(ge=20, le=10_000_000)] = 10_000
    """Requests that may arrive at once after a pause."""


class Project(Table):
    """Settings of one project; other projects have the general limits."""

    limits: Limits = Limits()
    """Its own limits, in place of those of `[limits]`."""
    forward_headers: ForwardedHeaders | None = None
    """Its own list, in place of the general `forward_headers`."""
    weight: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    """Its share of the calls, relative to the weights of other projects with waiting lines."""
