"""The door to HTTP for commands: what an inference server says that it serves."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tidemill.schemas import served

SECONDS_MAX: Final = 5.0
ANSWER_BYTES_MAX: Final = 1 << 20

_LACKING: Final = frozenset({404, 405, 501})
_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Unheard:
    """No list of models came."""

    why: str
    is_refused: bool = False
    """Whether the key was not taken, or none was sent."""


async def models(base: str, key: str | None, ca_file: Path | None = None) -> list[str] | Unheard:
    """The ids that `GET /models` lists."""
    try:
        async with (
            _session(key, ca_file) as session,
            session.get(f"{base}/models", allow_redirects=False) as answer,
        ):
            if not answer.ok:
                return Unheard(f"status {answer.status}", is_refused=answer.status in _REFUSED)
            body = b""
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    return Unheard(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return Unheard(_why(error))
    names = served.names(body)
    return Unheard("an answer that is no list of models") if names is None else names


def _why(error: Exception) -> str:
    """Why there was no answer, in plain words."""
    match error:
        case TimeoutError():
            return f"no answer in {SECONDS_MAX:.0f} s"
        case aiohttp.ClientConnectorDNSError():
            return "its host is not known"
        case aiohttp.ClientConnectorCertificateError():
            return "its certificate is not trusted; ca_file may name who signed it"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))):
            return os.strerror(number)
        case aiohttp.ClientConnectorError():
            return "no connection"
        case _:
            return "the connection broke off"


async def lacking(
    base: str, key: str | None, endpoints: Iterable[str], ca_file: Path | None = None
) -> frozenset[str]:
    """Those of some endpoints that it does not know.

    Each is asked with an empty object, which no server works on: one that knows the endpoint says what is missing.
    """

    async def is_lacking(session: aiohttp.ClientSession, endpoint: str) -> bool:
        url = base + endpoint.removeprefix("/v1")
        try:
            async with session.post(url, json={}, allow_redirects=False) as answer:
                return answer.status in _LACKING
        except (aiohttp.ClientError, OSError):
            return False

    named = tuple(endpoints)
    async with _session(key, ca_file) as session:
        found = await asyncio.gather(*(is_lacking(session, endpoint) for endpoint in named))
    return frozenset(endpoint for endpoint, is_so in zip(named, found, strict=True) if is_so)


@contextlib.asynccontextmanager
async def _session(key: str | None, ca_file: Path | None) -> AsyncIterator[aiohttp.ClientSession]:
    trusted = ssl.create_default_context(cafile=ca_file)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted),
        timeout=aiohttp.ClientTimeout(total=SECONDS_MAX),
        headers={"authorization": f"Bearer {key}"} if key else {},
    ) as session:
        yield session
