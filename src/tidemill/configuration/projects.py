"""The settings of projects: their limits, their shares of the calls, and the people who sign in to them."""

from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from tidemill.configuration.connections import is_local
from tidemill.configuration.misconfigured import Table
from tidemill.schemas import headers
from tidemill.schemas.bounds import BATCH_MODELS_MAX, FORWARDED_HEADERS_MAX, NAME_CHARS_MAX, Url, Word
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import DEFAULT_PROJECT, Role

GRANTS_MAX: Final = 256


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
    Parts of uploads count until they are deleted. Results may exceed it; uploads may not."""
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
    requests_per_second: Annotated[float, Field(ge=0.001, le=1_000_000)] = 1_000
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
    weight: Annotated[float, Field(ge=0.001, le=1_000)] = 1.0
    """Its share of the calls, relative to the weights of other projects with waiting lines."""


class Grant(Table):
    """What people with one value of the claim may do in one project."""

    value: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
    """The value, like the name of a group."""
    role: Role = Role.READ
    """`read`, `write`, `admin`, or `operator`, which is every project."""
    project: Annotated[str, Field(pattern=access.PROJECT)] = DEFAULT_PROJECT
    """The project."""


class OpenId(Table):
    """The provider with which people sign in at the dashboard, and what each may do."""

    issuer: Url
    """Address of the provider, as in its `/.well-known/openid-configuration`."""
    client_id: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
    """Id under which Tidemill is registered there, with the redirect URI
    `https://HOST/dashboard/sign-in/callback`."""
    client_secret_file: Path | None = None
    """File with the client's secret, which only the api reads; without it, the client is a public one."""
    scopes: Annotated[tuple[Word, ...], Field(max_length=16)] = ("openid", "email", "profile")
    """Scopes to request."""
    claim: Word = "groups"
    """Claim of the ID token or of the userinfo whose values `grants` name: a text, or a list of texts."""
    grants: Annotated[tuple[Grant, ...], Field(min_length=1, max_length=GRANTS_MAX)]
    """Who may do what. A person without a grant is refused; with several, the person chooses the project, and has
    the highest role of those for it."""
    session_seconds: Annotated[int, Field(ge=300, le=7 * 86_400)] = 8 * 3_600
    """How long a session lasts; then the person signs in again, and changed groups count."""

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, url: str) -> str:
        if not is_usable(url):
            raise ValueError("expected an address with https://; http:// is for this machine alone")
        return url

    @field_validator("scopes")
    @classmethod
    def _check_scopes(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in scopes:
            raise ValueError("openid is missing; without it the provider sends no ID token")
        return scopes


def is_usable(url: str) -> bool:
    """Whether a URL has TLS, or leads to this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_local(host)))
