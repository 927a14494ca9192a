"""The settings of models and of the servers that serve them."""

import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, Field, field_validator, model_validator

from tidemill.configuration.misconfigured import Table
from tidemill.configuration.schedule import Hours
from tidemill.schemas.endpoints import ENDPOINTS


class Spare(Table):
    """How much of a backend is left to batches where others' requests go first."""

    requests_max: Annotated[int, Field(ge=1)] | None = None
    """Requests that it should have at a time, of others and of Tidemill; by default as many as run until one
    waits."""
    calls_min: Annotated[int, Field(ge=0)] = 1
    """Calls in any case, of each processor process; with 0, batches wait while others need all of it."""


def _without_password(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username is not None or url.password is not None:
        raise ValueError("an address holds no name and no password, since it is shown; name a key in api_key_env")
    return url


def _with_scheme(url: object) -> object:
    if isinstance(url, str) and "://" not in url:
        raise ValueError(f"an address begins with http:// or https://, as in http://{url.lstrip('/')}")
    return url


ServerUrl = Annotated[AnyHttpUrl, BeforeValidator(_with_scheme), AfterValidator(_without_password)]
"""The address of a server; it may be logged and shown."""


BELOW_BASE: Final = (*(endpoint.removeprefix("/v1") for endpoint in ENDPOINTS), "/models")
"""What the addresses that are called have behind the base address."""


class Backend(Table):
    """One OpenAI-compatible inference server."""

    url: ServerUrl
    """Base address, the part before `/chat/completions`; it usually ends in `/v1`."""
    api_key_env: str | None = None
    """Environment variable with the server's key; if the variable is not set, nothing starts."""
    drain: bool = False
    """Make no new calls to it; calls in flight finish."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of its capacity that batches may use; the rest is for others."""
    hours: tuple[Hours, ...] = ()
    """Limits of concurrent calls by the hour of the day; outside of them only its capacity counts."""
    metrics: bool | ServerUrl = True
    """Address that reports how many requests run and wait, as vLLM and llama.cpp do; by default `/metrics`
    beside `/v1`, if that answers; `false` for none."""
    spare: Spare | None = None
    """If set, also to `{}`: requests of others go first, as its metrics show them."""
    ca_file: Path | None = None
    """PEM file of the authorities to trust with `https`; by default those of the system."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Average tokens of requests and answers a minute; by default unlimited."""

    @field_validator("url")
    @classmethod
    def _base(cls, url: AnyHttpUrl) -> AnyHttpUrl:
        if url.query is not None or url.fragment is not None:
            raise ValueError("it has a query or a fragment; the paths of endpoints are put behind it")
        base = str(url).rstrip("/")
        if ending := next((ending for ending in BELOW_BASE if base.endswith(ending)), None):
            raise ValueError(f"{ending} is put behind it; set {base.removesuffix(ending)}")
        return url

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.spare is not None and self.metrics is False:
            raise ValueError("spare: what others leave is read from metrics, and they are switched off")
        if self.ca_file is not None and not self.ca_file.is_file():
            raise ValueError(f"{self.ca_file} is not there")
        return self

    @property
    def metrics_url(self) -> str | None:
        """Where its metrics are; None where it is not asked."""
        if isinstance(self.metrics, bool):
            return self.base.removesuffix("/v1") + "/metrics" if self.metrics else None
        return str(self.metrics)

    @property
    def base(self) -> str:
        """The address without a final slash."""
        return str(self.url).rstrip("/")

    @property
    def api_key(self) -> str | None:
        """The key, read at the time of asking."""
        return os.environ.get(self.api_key_env) if self.api_key_env else None


class Price(Table):
    """What a model costs at the base price, in currency units."""

    input_per_million: Annotated[Decimal, Field(ge=0, max_digits=18)] = Decimal(0)
    """For a million input tokens."""
    output_per_million: Annotated[Decimal, Field(ge=0, max_digits=18)] = Decimal(0)
    """For a million output tokens."""


class Model(Table):
    """A model that batches may name, and who serves it."""

    backends: Annotated[tuple[Backend, ...], Field(min_length=1)]
    """The servers; the least loaded one is called first."""
    endpoints: tuple[str, ...] = tuple(ENDPOINTS)
    """Endpoints that its servers have."""
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Concurrent calls to the model's backends, of all processor processes together."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Average tokens a minute of all its backends together; each may have a limit of its own as well."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600
    """A longer call is aborted and retried."""
    tries_max: Annotated[int, Field(ge=2, le=100)] = 10
    """Calls for a line that its server fails while it answers others (429, 5xx, no answer in time), over at
    least a minute; then the line ends with the server's last answer."""
    prefix_bytes: Annotated[int, Field(ge=64, le=65_536)] | None = None
    """Number of first bytes of a prompt that define its group: lines of a batch with the same prefix run one
    after another, for servers with a prefix cache. By default lines run in the order of the input."""
    price: Price = Price()
    """Base price; a batch pays it less the discount."""

    @field_validator("backends")
    @classmethod
    def _apart(cls, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
        for number, backend in enumerate(backends):
            if backend.base in {other.base for other in backends[:number]}:
                raise ValueError(f"{backend.base} is named twice")
        return backends

    @field_validator("endpoints")
    @classmethod
    def _known(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in endpoints:
            if endpoint not in ENDPOINTS:
                raise ValueError(f"unknown endpoint {endpoint!r}; known are {', '.join(ENDPOINTS)}")
        return endpoints
