"""A server that answers without an end, over real sockets, and those who call servers of operators."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
from support.listening import stop_listening

from tidemill.api.access import provider
from tidemill.api.access.openid import Refused
from tidemill.configuration.servers import Server
from tidemill.http.bounded_connector import BoundedConnector
from tidemill.runtime import server_probe

HINT = b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"


@asynccontextmanager
async def serving(*chunks: bytes):
    """The address of a server that answers each request with these chunks, and the sizes of those it sent."""
    sent = []

    async def handle(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for chunk in chunks:
                    writer.write(chunk)
                    await writer.drain()
                    sent.append(len(chunk))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", sent
    finally:
        await stop_listening(server)


async def models(url: str) -> str:
    """Why a server has no list of models."""
    return (await server_probe.models(Server(url=url))).why


async def openid(url: str) -> str:
    """Why there is no answer of an OpenID provider."""
    with pytest.raises(Refused) as refused:
        await provider._fetch("GET", url)
    return str(refused.value).removeprefix(url)


@pytest.mark.parametrize(
    ("ask", "why"), [(models, "the connection broke off"), (openid, " does not answer: ClientConnectionError")]
)
async def test_endless_hints_end_the_connection(ask, why):
    """The system's own buffers take some MiB."""
    async with serving(*([HINT * 1_000] * 5_000)) as (url, sent):
        assert await ask(url) == why
        assert sum(sent) < 32 << 20


async def test_each_request_of_a_connection_has_all_bytes():
    """Also with some hints, and exactly at the bound."""
    answer = HINT * 3 + OK
    async with (
        serving(answer) as (url, _),
        aiohttp.ClientSession(connector=BoundedConnector(len(answer))) as session,
    ):
        for _ in range(3):
            async with session.get(url) as reply:
                assert await reply.read() == b"body"
    async with (
        serving(answer) as (url, _),
        aiohttp.ClientSession(connector=BoundedConnector(len(answer) - len(OK) - 1)) as session,
    ):
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url)
