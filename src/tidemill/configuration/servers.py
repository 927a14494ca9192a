"""The settings of models and of the servers that serve them."""

import os
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from tidemill import credentials
from tidemill.configuration.connections import address_of
from tidemill.configuration.misconfigured import TABLE, Table
from tidemill.configuration.security import VariableName, tls_fault
from tidemill.credentials import SecretError
from tidemill.schemas import headers
from tidemill.schemas.bounds import Name
from tidemill.schemas.endpoints import DEFAULTS, ENDPOINTS
from tidemill.schemas.resources.batch import Dedupe

IN_FLIGHT_MAX: Final = 64
"""Concurrent calls to a server whose settings, and those of its models, name no number."""
KEY_PREFIX: Final = "TIDEMILL_KEY_"
"""Prefix of the variables that a server added over the API may name for its key. Otherwise an operator of the
service could send any variable of a process to a server of its choice."""

ModelName = Annotated[Name, Field(pattern=r"^\S(.*\S)?$")]
Pattern = Annotated[str, Field(min_length=1, max_length=255)]
ServerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _minute(text: object) -> object:
    if not isinstance(text, str):
        return text
    hours, _, minutes = text.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(minutes) < 60):  # noqa: PLR2004  minutes of an hour
        raise ValueError(f"{text!r} is not a time of the form HH:MM")
    return int(hours) * 60 + int(minutes)


Minute = Annotated[int, BeforeValidator(_minute), Field(ge=0, le=1440)]


class Hours(Table):
    """A time of day in which a backend has a limit of concurrent calls."""

    start: Annotated[Minute, Field(alias="from")]
    """`HH:MM`, in UTC."""
    end: Annotated[Minute, Field(alias="to")]
    """`HH:MM`, exclusive; if before `from`, of the next day; if equal to it, a whole day later."""
    days: Annotated[tuple[Annotated[int, Field(ge=1, le=7)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5, 6, 7)
    """Days of the week on which the time begins; 1 is Monday."""
    max_in_flight: Annotated[int, Field(ge=0)]
    """Concurrent calls; 0 leaves the backend to other users."""


class Headroom(Table):
    """The share of a server that stays free for people who use it beside batches."""

    ttft_ms: Annotated[float, Field(gt=0, le=600_000)]
    """Milliseconds within which 99 of 100 requests get their first token, by the server's own histogram; batches
    get as many calls as this allows. The server's buckets tell values at their bounds best (vLLM: 20, 40, 60, 80,
    100, 250, 500)."""


def _kind(headroom: object) -> str:
    return TABLE if isinstance(headroom, dict | Headroom) else "bool"


def _usable(url: AnyHttpUrl) -> AnyHttpUrl:
    try:
        (url.host or "").encode("idna")
    except UnicodeError as error:
        raise ValueError("its host name has an empty part, or one of more than 63 characters") from error
    if url.username is not None or url.password is not None:
        raise ValueError("an address holds no name and no password, since it is shown; name a key in api_key_env")
    return url


def _with_scheme(url: object) -> object:
    if isinstance(url, str) and "://" not in url:
        raise ValueError(f"an address begins with http:// or https://, as in http://{url.lstrip('/')}")
    return url


ServerUrl = Annotated[AnyHttpUrl, BeforeValidator(_with_scheme), AfterValidator(_usable)]
"""The address of a server; it may be logged and shown."""


def _check_header(name: str) -> None:
    if not headers.is_name(name):
        raise ValueError(f"{name!r} cannot be the name of a header")
    if name.lower() in headers.OWN:
        raise ValueError(f"Tidemill sets {name.lower()} itself")


class Server(Table):
    """An OpenAI-compatible inference server, whichever models it serves."""

    url: ServerUrl
    """Base address, the part before `/chat/completions`; it usually ends in `/v1`."""
    api_key_env: VariableName | None = None
    """Environment variable with the server's key; a process without the variable makes no calls to it."""
    ca_file: Path | None = None
    """PEM file of the authorities to trust with `https`; by default those of the system."""
    client_cert_file: Path | None = None
    """PEM file of the certificate that Tidemill shows to the server, with its chain."""
    client_key_file: Path | None = None
    """PEM file of that certificate's key, if it is not in the same file."""
    proxy: ServerUrl | None = None
    """HTTP proxy on the way to it and to its metrics, like `http://proxy:3128`; it forwards calls to `http` and
    tunnels those to `https`. By default none: variables like `HTTPS_PROXY` are not read."""
    headers: dict[str, str] = Field(default_factory=dict)
    """More headers of each request to it. Operators see them, and so does every reader of the catalog's topic; a
    secret belongs in `api_key_env`, if the server takes it from `Authorization`."""
    priority_by_deadline: bool = False
    """Send vLLM's `priority` with each call, so that earlier deadlines go first, and requests of others, which
    have 0, before them; the server needs `--scheduling-policy priority`. A line's own `priority` is replaced."""
    deadline_header: str | None = None
    """Header that says with each call how many milliseconds its line has left, like `x-slo-ttft-ms`, which llm-d's
    endpoint picker reads; by default none."""
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Concurrent calls, of all its models and all processor processes together; by default the largest
    `max_in_flight` of its models, or 64 if they have none."""
    unacknowledged_max: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Results that the log may still have to acknowledge, of all processor processes together, while
    `max_in_flight` calls are in flight; each one more takes the place of a call. By default a quarter of
    `max_in_flight`. A processor process that is killed repeats at most its part of both numbers."""
    share: Annotated[float, Field(ge=0.001, le=1)] = 1.0
    """Share of its capacity that batches may use; the rest is for others."""
    hours: tuple[Hours, ...] = ()
    """Limits of concurrent calls by the hour of the day; outside of them only its capacity counts."""
    metrics: bool | ServerUrl = True
    """Address that reports how many requests run and wait, as vLLM and llama.cpp do; by default `/metrics`
    beside `/v1`, if that answers; `false` for none."""
    headroom: Annotated[Annotated[bool, Tag("bool")] | Annotated[Headroom, Tag(TABLE)], Discriminator(_kind)] = (
        False
    )
    """With `true`, other clients' requests go first, as its metrics show them, and a quarter of its capacity stays
    free for them; with a table, they get their first token in time."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Average tokens of requests and answers a minute; by default unlimited."""
    drain: bool = False
    """Make no new calls to it; calls in flight finish."""
    discover: Literal["dns"] | None = None
    """With `dns`, each address that the host name resolves to is a server of its own, like `gpu@10.0.0.7`, with
    all of these settings; Tidemill follows changes of the addresses while batches run."""
    models: Annotated[tuple[Pattern, ...], Field(max_length=16)] = ()
    """Patterns like `lora-*`: a model with such a name is admitted while the server lists it; the api, which needs
    the server's key for it, asks every ten seconds."""
    models_like: Name | None = None
    """A model whose settings these models have, but for its servers and its other names."""

    @field_validator("url")
    @classmethod
    def _base(cls, url: AnyHttpUrl) -> AnyHttpUrl:
        if url.query is not None or url.fragment is not None:
            raise ValueError("it has a query or a fragment; the paths of endpoints are put behind it")
        base = str(url).rstrip("/")
        below = (*(path.removeprefix("/v1") for path in ENDPOINTS), "/models")
        if ending := next((ending for ending in below if base.endswith(ending)), None):
            raise ValueError(f"{ending} is put behind it; set {base.removesuffix(ending)}")
        return AnyHttpUrl(base)

    @field_validator("headers")
    @classmethod
    def _sendable(cls, sent: dict[str, str]) -> dict[str, str]:
        for name, value in sent.items():
            _check_header(name)
            if not value.isascii():
                raise ValueError(f"the value of {name} is not ASCII")
        return sent

    @field_validator("deadline_header")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        if name is not None:
            _check_header(name)
        return name

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.headroom and self.metrics is False:
            raise ValueError("headroom: what others leave is read from metrics, and they are switched off")
        if self.discover and address_of(self.url.host or ""):
            raise ValueError(f"discover: {self.url.host} is an address, and no host name")
        if self.discover and not isinstance(self.metrics, bool) and self.metrics.host != self.url.host:
            raise ValueError(
                f"discover: metrics are read from each address, so they need the host {self.url.host}"
            )
        if self.proxy is not None and (self.proxy.scheme != "http" or (self.proxy.path or "/") != "/"):
            raise ValueError(f"proxy: expected an address like http://proxy:3128, but got {self.proxy}")
        if self.proxy is not None and self.discover:
            raise ValueError("discover: the proxy looks up the name, so its addresses are not known here")
        if self.client_key_file is not None and self.client_cert_file is None:
            raise ValueError("client_key_file: it is the key of a certificate, and client_cert_file is not set")
        return self

    @property
    def lack(self) -> str | None:
        """Why this process cannot call it: a key or a file is missing or malformed; None if it has all."""
        try:
            self._key()
        except SecretError as error:
            return str(error)
        return self._file_fault

    @property
    def fault(self) -> str | None:
        """The fault of a key or a file that this process has; it may have no key, as all but processors."""
        return self.lack if os.environ.get(self.api_key_env or "") else self._file_fault

    @property
    def _file_fault(self) -> str | None:
        """The fault of one of its files, which it reads at each call; None if this process can use all."""
        files = (self.ca_file, self.client_cert_file, self.client_key_file)
        for file in files:
            if file is not None and not (os.access(file, os.R_OK) and file.is_file()):
                return f"{file} is not there, or cannot be read"
        try:
            stamps = tuple((at.st_mtime_ns, at.st_size) for at in (file.stat() for file in files if file))
        except OSError as error:
            return str(error)
        return tls_fault(*files, stamps) if stamps else None

    @property
    def metrics_url(self) -> str | None:
        """Address of its metrics; None if they are switched off."""
        if isinstance(self.metrics, bool):
            return self.base.removesuffix("/v1") + "/metrics" if self.metrics else None
        return str(self.metrics)

    @property
    def base(self) -> str:
        """The address without a final slash."""
        return str(self.url).rstrip("/")

    @property
    def api_key(self) -> str | None:
        """The key, read from the environment now; None without a key that can be sent (see `lack`)."""
        with suppress(SecretError):
            return self._key()
        return None

    def _key(self) -> str | None:
        return credentials.of_variable(self.api_key_env, is_header=True) if self.api_key_env else None

    @property
    def identity(self) -> tuple[str, str | None]:
        """Address and key: settings that agree in these are of the same server."""
        return self.base, self.api_key_env

    @property
    def place(self) -> str:
        """The address as a name: host, port, and the path unless it is `/v1`."""
        path = (self.url.path or "").rstrip("/").removesuffix("/v1")
        return f"{self.url.host}:{self.url.port}{path}"


class Price(Table):
    """What a model costs at the base price, in currency units."""

    input_per_million: Annotated[Decimal, Field(ge=0, max_digits=18)] = Decimal(0)
    """For a million input tokens."""
    output_per_million: Annotated[Decimal, Field(ge=0, max_digits=18)] = Decimal(0)
    """For a million output tokens."""
    per_image: Annotated[Decimal, Field(ge=0, max_digits=18)] = Decimal(0)
    """For an image that is made, beside its tokens."""
    per_audio_minute: Annotated[Decimal, Field(ge=0, max_digits=18)] = Decimal(0)
    """For a minute of audio whose reply reports seconds and no tokens."""


class Model(Table):
    """A model that batches may name."""

    servers: tuple[str, ...] = ()
    """Names of the servers that serve it, as in `[servers.name]`; the least loaded one is called first."""
    backends: tuple[Server, ...] = ()
    """The servers themselves, in place of `servers`. Equal entries of several models are one server."""
    upstream_model: Name | None = None
    """Its name at the servers; by default its own."""
    aliases: tuple[ModelName, ...] = ()
    """More names by which batches may ask for it."""
    endpoints: Annotated[tuple[str, ...], Field(min_length=1)] = DEFAULTS
    """Endpoints that its servers have."""
    body_defaults: dict[str, Any] = Field(default_factory=dict)
    """Fields that each call gets if its line does not have them."""
    body_forced: dict[str, Any] = Field(default_factory=dict)
    """Fields that each call gets, whatever its line has."""
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Concurrent calls of this model, of all processor processes together; by default its servers' numbers alone
    bound them. When a process joins or leaves, calls in flight may exceed it until they end."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Average tokens a minute of this model at all its servers; each server may have a limit of its own as
    well."""
    timeout_seconds: Annotated[float, Field(ge=0.01, le=7 * 86_400)] = 600
    """A longer call is aborted and retried; at most a week."""
    tries_max: Annotated[int, Field(ge=2, le=100)] = 10
    """Failed calls (429, 5xx, no answer in time) after which a line ends with the server's last answer; they count
    only while the server answers other lines, and span at least a minute."""
    prefix_bytes: Annotated[int, Field(ge=64, le=65_536)] | None = None
    """Number of first bytes of a prompt that define its group: lines of a batch with the same prefix run one
    after another, for servers with a prefix cache. By default lines run in the order of the input."""
    inputs_per_call: Annotated[int, Field(ge=1, le=2048)] = 1
    """Most inputs of one call: waiting lines of a batch for `/v1/embeddings` or `/v1/completions` with the same
    parameters share a call, as an array; each has a result of its own. A call takes one place of `max_in_flight`,
    however many inputs it has."""
    dedupe: Dedupe = "none"
    """Equal lines of a batch to ask once: `none`, `batch` if their answer is deterministic, `all` in any case. A
    batch may say otherwise; if it says nothing, the model of its first line decides."""
    price: Price = Price()
    """Base price; a batch pays it less the discount."""
    paused: bool = False
    """Make no new calls for it; calls in flight finish, and its batches wait."""

    @field_validator("backends")
    @classmethod
    def _apart(cls, backends: tuple[Server, ...]) -> tuple[Server, ...]:
        for number, backend in enumerate(backends):
            if backend.base in {other.base for other in backends[:number]}:
                raise ValueError(f"{backend.base} is named twice")
        return backends

    @field_validator("servers")
    @classmethod
    def _once(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for number, name in enumerate(servers):
            if name in servers[:number]:
                raise ValueError(f"{name} is named twice")
        return servers

    @field_validator("endpoints")
    @classmethod
    def _known(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in endpoints:
            if endpoint not in ENDPOINTS:
                raise ValueError(f"unknown endpoint {endpoint!r}; known are {', '.join(ENDPOINTS)}")
        return endpoints

    @field_validator("body_defaults", "body_forced")
    @classmethod
    def _settable(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name in _INSTEAD:
            if name in fields:
                raise ValueError(f"{name}: it cannot be set here{_INSTEAD[name]}")
        try:
            orjson.dumps(fields, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except TypeError as error:
            raise ValueError("dates and times are not JSON; write them as text") from error
        return fields

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.prefix_bytes is not None and self.inputs_per_call > 1:
            raise ValueError("inputs_per_call: lines in groups by prefix go one by one; remove prefix_bytes")
        return self

    @model_validator(mode="after")
    def _served(self) -> Self:
        if bool(self.servers) == bool(self.backends):
            both = "it has both servers and backends; " if self.servers else "it names no server; "
            example = 'servers = ["gpu-1"], or backends = [{ url = "http://127.0.0.1:8000/v1" }]'
            raise ValueError(f"{both}write {example}")
        return self


_INSTEAD: Final = {"model": "; see upstream_model", "stream": ", since answers are not read as they stream"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """All servers and models by name, and which servers serve each model."""

    servers: dict[str, Server]
    models: dict[str, Model]
    by_model: dict[str, tuple[str, ...]]
    aliases: dict[str, str]
    """The models by their other names."""

    def models_of(self, server: str) -> list[str]:
        """The models that a server serves."""
        return [model for model, names in self.by_model.items() if server in names]
