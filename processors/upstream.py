"""The door to the model servers: one POST, one answer or the reason why there is none."""

import asyncio
from typing import Final, Protocol

import aiohttp

from tidemill.processors.call import REPLY_BYTES_MAX, Answer, Broken

CONNECT_SECONDS_MAX: Final = 10.0
KEEPALIVE_SECONDS: Final = 4.0
"""Shorter than the 5 s after which common servers close an idle connection, so that no call meets one closing."""


class Upstream(Protocol):
    """What the stage needs of an HTTP client."""

    async def post(self, url: str, headers: dict[str, str], body: bytes, seconds: float) -> Answer | Broken:
        """Make a call; it ends within `seconds`, and never raises for what the other side does."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class AiohttpUpstream:
    """The door on aiohttp."""

    def __init__(self) -> None:
        """Needs a running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
            skip_auto_headers=("User-Agent",),
            trust_env=False,
        )

    async def post(self, url: str, headers: dict[str, str], body: bytes, seconds: float) -> Answer | Broken:
        """See `Upstream`."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS_MAX))
        try:
            async with self._session.post(
                url, headers=headers, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                content = await _read(response)
                return content if isinstance(content, Broken) else _answer(response, content)
        except aiohttp.ClientConnectorError:
            return Broken.UNREACHABLE
        except aiohttp.ConnectionTimeoutError:
            return Broken.UNREACHABLE
        except TimeoutError:
            return Broken.TIMEOUT
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, ValueError):
            return Broken.CONNECTION

    async def close(self) -> None:
        """See `Upstream`."""
        await self._session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes | Broken:
    """The body, bounded."""
    if (response.content_length or 0) > REPLY_BYTES_MAX:
        return Broken.TOO_LARGE
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > REPLY_BYTES_MAX:
            response.close()
            return Broken.TOO_LARGE
        chunks.append(chunk)
    return b"".join(chunks)


def _answer(response: aiohttp.ClientResponse, body: bytes) -> Answer:
    headers = response.headers
    return Answer(response.status, body, headers.get("x-request-id"), headers.get("retry-after"))
