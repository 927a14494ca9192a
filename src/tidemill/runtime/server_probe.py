"""Asks an inference server which models and endpoints it serves."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from tidemill.configuration.security import load_certificate, no_connection
from tidemill.configuration.servers import Server, Serving
from tidemill.http.bounded_connector import BoundedConnector
from tidemill.schemas import served
from tidemill.schemas.endpoints import address
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.resources import access

SECONDS_MAX: Final = 5.0
CALL_SECONDS_MAX: Final = 60.0
ANSWER_BYTES_MAX: Final = 1 << 20
RECEIVED_MAX: Final = (64 << 10) + ANSWER_BYTES_MAX
"""Bytes of one answer with its heads, as they arrive."""
ANSWER_BYTES_SHOWN: Final = 600

_LACKING: Final = frozenset({404, 405, 501})
_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class NoModels:
    """The server returned no list of models."""

    why: str
    is_refused: bool = False
    """Whether it rejected the API key or its absence."""


async def models(server: Server) -> list[str] | NoModels:
    """The model ids of `GET /models`."""
    if (fault := server.fault) is not None:
        return NoModels(fault)
    try:
        async with (
            _session(server) as session,
            session.get(f"{server.base}/models", allow_redirects=False) as answer,
        ):
            if answer.headers.get("www-authenticate") == access.CHALLENGE:
                return NoModels("it is the API of Tidemill, not an inference server")
            if not answer.ok:
                return NoModels(f"status {answer.status}", is_refused=answer.status in _REFUSED)
            body = b""
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    return NoModels(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return NoModels(_why(error))
    names = served.names(body)
    return NoModels("an answer that is not a list of models") if names is None else names


async def faults(serving: Serving, name: str) -> list[str]:
    """Why calls to a server may fail now: it does not answer, or does not list its models."""
    found = await models(serving.servers[name])
    if isinstance(found, NoModels):
        # Only the processors have its key.
        return [] if found.is_refused else [f"server {name} ({serving.servers[name].base}): {found.why}"]
    upstream = {model: serving.models[model].upstream_model or model for model in serving.models_of(name)}
    return [
        f"server {name} does not list {one}, for the model {model}"
        for model, one in upstream.items()
        if one not in found
    ]


def _why(error: Exception, seconds_max: float = SECONDS_MAX) -> str:
    """Why there is no answer, in plain words."""
    match error:
        case TimeoutError():
            return f"no answer in {seconds_max:.0f} s"
        case aiohttp.ClientConnectorDNSError():
            return "its host name does not resolve"
        case aiohttp.ClientConnectorCertificateError():
            return no_connection(error.certificate_error, fix="; set ca_file to the CA that signed it")
        case aiohttp.ClientConnectorError():
            return no_connection(error.os_error)
        case _:
            return "the connection broke off"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call."""

    is_good: bool
    text: str
    """The beginning of the answer, or why there is none."""
    seconds: float


async def call(server: Server, endpoint: str, body: Mapping[str, object]) -> Answer:
    """Make one call, within `CALL_SECONDS_MAX`."""
    began = time.monotonic()
    try:
        async with (
            _session(server, CALL_SECONDS_MAX) as session,
            session.post(address(server.base, endpoint), json=dict(body), allow_redirects=False) as answer,
        ):
            content = await answer.content.read(ANSWER_BYTES_SHOWN)
            text = content.decode(errors="replace") if answer.ok else server_error.message(content)
            found = answer.ok, f"{answer.status} {text}"
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        found = False, _why(error, CALL_SECONDS_MAX)
    return Answer(*found, time.monotonic() - began)


async def lacking(server: Server, endpoints: Iterable[str]) -> frozenset[str]:
    """Those of some endpoints that the server does not know.

    Sends an empty object to each, which no server can process; a server that knows the endpoint answers 400.
    """

    async def is_lacking(session: aiohttp.ClientSession, endpoint: str) -> bool:
        url = address(server.base, endpoint)
        try:
            async with session.post(url, json={}, allow_redirects=False) as answer:
                return answer.status in _LACKING
        except (aiohttp.ClientError, OSError):
            return False

    named = tuple(endpoints)
    async with _session(server) as session:
        found = await asyncio.gather(*(is_lacking(session, endpoint) for endpoint in named))
    return frozenset(endpoint for endpoint, is_so in zip(named, found, strict=True) if is_so)


@contextlib.asynccontextmanager
async def _session(server: Server, seconds_max: float = SECONDS_MAX) -> AsyncIterator[aiohttp.ClientSession]:
    trusted = ssl.create_default_context(cafile=server.ca_file)
    if server.client_cert_file is not None:
        load_certificate(trusted, server.client_cert_file, server.client_key_file)
    key = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    async with aiohttp.ClientSession(
        connector=BoundedConnector(RECEIVED_MAX, ssl=trusted),
        timeout=aiohttp.ClientTimeout(total=seconds_max),
        headers={**server.headers, **key},
        proxy=None if server.proxy is None else str(server.proxy),
    ) as session:
        yield session
