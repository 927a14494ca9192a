"""The doctor's findings about an inference server, over real HTTP."""

import asyncio
import ssl
from pathlib import Path

import pytest
from support.backend import Backend

from tidemill.configuration.servers import Server
from tidemill.runtime import server_probe
from tidemill.runtime.server_probe import NoModels
from tidemill.schemas import served

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/v1/responses")
TLS = Path(__file__).parents[1] / "support" / "tls"


@pytest.fixture
def server():
    """One that lists two models."""
    with Backend() as made:
        made.lists = ("a", "b")
        yield made


def of(url, monkeypatch=None, key=None):
    """The settings of a server, with a key of the environment."""
    if key is None:
        return Server(url=url)
    monkeypatch.setenv("KEY", key)
    return Server(url=url, api_key_env="KEY")


async def test_its_models(server, monkeypatch):
    """With the right key; the finding names a wrong key."""
    server.key = "sk-1"
    assert await server_probe.models(of(server.url, monkeypatch, "sk-1")) == ["a", "b"]
    assert await server_probe.models(of(server.url, monkeypatch, "sk-2")) == NoModels(
        "status 401", is_refused=True
    )
    assert await server_probe.models(of(server.url)) == NoModels("status 401", is_refused=True)
    assert await server_probe.models(of("http://127.0.0.1:1/v1")) == NoModels("Connection refused")


async def test_a_server_behind_a_proxy(server):
    """The proxy looks up its name."""
    behind = Server(url="http://gpu.invalid/v1", proxy=server.url.removesuffix("/v1"))
    assert await server_probe.models(behind) == ["a", "b"]


async def test_a_host_that_is_not_known():
    """The finding is in words: the resolver's error numbers are not the system's."""
    found = await server_probe.models(of("http://tidemill.invalid/v1"))
    assert found == NoModels("its host name does not resolve")


async def test_a_certificate_that_is_not_trusted():
    """Is a finding, which ends no command."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        found = await server_probe.models(of(f"https://127.0.0.1:{port}/v1"))
    assert found == NoModels("its certificate is not trusted; set ca_file to the CA that signed it")


async def test_a_long_list(server):
    """A gateway may list thousands: they come in many pieces, and all of them count."""
    server.lists = tuple(f"model-{number}" for number in range(10_000))
    assert await server_probe.models(of(server.url)) == list(server.lists)


async def test_what_it_lacks(server):
    """Not those that answer that a field is missing, and none if it does not answer."""
    server.lacks = frozenset({"/v1/embeddings", "/v1/responses"})
    assert await server_probe.lacking(of(server.url), ENDPOINTS) == server.lacks
    assert await server_probe.lacking(of("http://127.0.0.1:1/v1"), ENDPOINTS) == frozenset()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"object":"list","data":[{"id":"tiny","object":"model","root":"/m"}]}', ["tiny"]),
        (b'{"data":[]}', []),
        (b'{"error":"Unauthorized"}', None),
        (b'{"data":[{"name":"x"}]}', None),
        (b"<html>", None),
        (b"[" * 100_000, None),
    ],
)
def test_a_list_of_models(body, names):
    """In OpenAI's shape; another answer is no list."""
    assert served.names(body) == names
