"""A call that finds no endpoint, over real HTTP, with the bodies that vLLM 0.32 gives."""

import asyncio
import contextlib
import time

import pytest
from support.backend import Backend as Server
from support.backend import Behaviour
from support.servers import configured

from tidemill.configuration.servers import Model
from tidemill.processors.backends.breaker import ROW_NEW
from tidemill.processors.calls import endpoint_probe
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import LISTED_SECONDS, OTHERS_SECONDS, EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.failures import Fault
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions.window import Entry, PartitionWindow
from tidemill.schemas.log.codec import RequestHead
from tidemill.storage.address import DirectoryStore

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
NO_MODEL = (
    b'{"error":{"message":"The model `m` does not exist. Valid aliases: tiny.",'
    b'"type":"NotFoundError","param":"model","code":404}}'
)
BODIES = {
    CHAT: b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
    EMBEDDINGS: b'{"model":"m","input":"hi"}',
}


def without_the_model(body, nth):
    """A server that was started anew with another model."""
    del body, nth
    return Behaviour(status=404, body=NO_MODEL)


class Handle:
    """No partition."""

    def ack(self, token): ...

    def pause(self): ...

    def resume(self): ...


class World:
    """A model of some backends."""

    def __init__(self, upstream, folder, *named):
        models = {"m": Model.model_validate({"backends": list(named)})}
        self.fleet = configured(models, clock=time.time).pools["m"]
        self.fleet.set_part(1.0, 0.0)
        self.menu = EndpointProbe("m", self.fleet, upstream)
        self._caller = Caller(
            pool=self.fleet,
            endpoint_probe=self.menu,
            upstream=upstream,
            store=DirectoryStore(folder),
            forms=Forms(DirectoryStore(folder), LineBudget()),
            clock=time.time,
            seconds_max=5,
        )
        self._window = PartitionWindow(Handle())

    async def call(self, url, index=0):
        """Call once, at any server with a free place; returns the result."""
        deadline = int(time.time()) + 60
        head = RequestHead(batch_id="batch_1", project="p", first=0, deadline=deadline, url=url)
        text = b'{"custom_id":"a","method":"POST","url":"%b","body":%b}' % (url.encode(), BODIES[url])
        place = self.fleet.acquire(asyncio.get_running_loop().time())
        assert place is not None
        made = await self._caller.make(Line(head, index, text, [Entry(self._window, 0, 1, len(text))]), place)
        return made.end


@pytest.fixture
async def world(tmp_path):
    """Makes a world, and closes its connections at the end."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = HttpUpstream()
        stack.push_async_callback(upstream.close)
        yield lambda *named: World(upstream, tmp_path, *named)


@pytest.fixture
def server():
    """A chat model's server that lists its model."""
    with Server() as made:
        made.lists = ("other", "m")
        made.lacks = frozenset({EMBEDDINGS})
        yield made


NOT_FOUND = b'{"message":"Not Found","type":"backend_error","param":null,"code":null}'


async def test_a_line_ends_if_its_endpoint_is_not_served(world, server, monkeypatch):
    """At its first call, and its backend goes on: other lines do not suffer."""
    monkeypatch.setenv("KEY", "sk-1")
    one = world({"url": server.url, "api_key_env": "KEY"})
    ends = await asyncio.gather(*(one.call(EMBEDDINGS, index) for index in range(8)))
    assert {(end.fault, end.kind, end.message, end.answer.status, end.body) for end in ends} == {
        (
            Fault.LINE,
            "endpoint_not_served",
            "The model's backend does not serve /v1/embeddings.",
            404,
            b'{"detail":"Not Found","error":%b}' % NOT_FOUND,
        )
    }
    backend = one.fleet.backends[0]
    assert (backend.breaker.failures, backend.in_flight) == (0, 0)
    assert (await one.call(CHAT)).answer.status == 200
    assert server.listings == {"Bearer sk-1": 1}, "it is asked once, and with its key"


async def test_a_line_waits_if_the_server_does_not_list_its_model(world, server):
    """An operator must fix that: the model has another name there, or the address is wrong."""
    server.rule = without_the_model
    server.lists = ("tiny",)
    one = world({"url": server.url})
    end = await one.call(CHAT)
    assert (end.fault, end.kind, end.answer.body) == (Fault.ACCESS_OR_LINE, "backend_error", NO_MODEL)
    for index in range(1, ROW_NEW):
        await one.call(CHAT, index)
    assert one.fleet.backends[0].breaker.failures == 1


async def test_a_404_about_something_else_is_no_missing_endpoint(world, server):
    """The server serves the endpoint, and does not know what the line names."""
    own = b'{"error":{"message":"Previous response with id \'x\' not found.","code":404}}'
    server.rule = lambda body, _: Behaviour(status=404, body=own) if body else Behaviour(status=400)
    one = world({"url": server.url})
    end = await one.call(CHAT)
    assert (end.kind, end.status, end.body) == ("backend_error", 404, own)


async def test_a_probe_is_valid_for_a_moment(world, server, monkeypatch):
    """A server that was started anew may serve something else."""
    one = world({"url": server.url})
    assert await one.menu.lacks(EMBEDDINGS, one.fleet.backends[0])
    server.lists = ()
    assert await one.menu.lacks(EMBEDDINGS, one.fleet.backends[0])
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + LISTED_SECONDS)
    assert not await one.menu.lacks(EMBEDDINGS, one.fleet.backends[0])
    assert server.listings.total() == 2


async def test_a_line_waits_while_another_backend_may_serve_its_endpoint(world, server):
    """It ends once every backend that gets calls has been probed."""
    with Server() as second:
        second.lists = ("m",)
        second.lacks = frozenset({EMBEDDINGS, CHAT})
        drained = {"url": "http://127.0.0.1:1/v1", "drain": True}
        one = world({"url": server.url}, {"url": second.url}, drained)
        first, last, _ = one.fleet.backends
        assert not await one.menu.lacks(EMBEDDINGS, first)
        assert not await one.menu.lacks(CHAT, last)
        assert await one.menu.lacks(EMBEDDINGS, last)


async def test_a_line_waits_for_a_backend_that_serves_its_endpoint_again(world, server, monkeypatch):
    """However late it was found to lack the endpoint: the line tries it before it ends."""
    with Server() as second:
        second.lists = ("m",)
        second.lacks = frozenset({EMBEDDINGS})
        one = world({"url": server.url}, {"url": second.url})
        first, last = one.fleet.backends
        assert not await one.menu.lacks(EMBEDDINGS, first)
        assert await one.menu.lacks(EMBEDDINGS, last)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + OTHERS_SECONDS)
        server.lacks = frozenset()
        assert not await one.menu.lacks(EMBEDDINGS, last)
        server.lacks = frozenset({EMBEDDINGS})
        assert not await one.menu.lacks(EMBEDDINGS, last), "no line has tried it since"


async def test_lines_that_fail_one_after_the_other_share_the_probes_of_all_servers(world, server, monkeypatch):
    """A batch for an endpoint that no server has costs one call for each line, and few probes."""
    seconds = 30.0
    monkeypatch.setattr(endpoint_probe, "OTHERS_SECONDS", seconds)
    monkeypatch.setattr(endpoint_probe, "LISTED_SECONDS", seconds)
    with Server() as second:
        second.lists = ("m",)
        second.lacks = frozenset({EMBEDDINGS})
        one = world({"url": server.url}, {"url": second.url})
        first, last = one.fleet.backends
        assert not await one.menu.lacks(EMBEDDINGS, first)
        for _ in range(20):
            assert await one.menu.lacks(EMBEDDINGS, last)
        assert (server.listings.total(), second.listings.total()) == (1, 1)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + seconds)
        for _ in range(20):
            assert await one.menu.lacks(EMBEDDINGS, last)
        assert (server.listings.total(), second.listings.total()) == (2, 2)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_other_statuses_need_no_probe(world, server, status):
    """No list is asked for."""
    server.lacks = frozenset()
    server.rule = lambda *_: Behaviour(status=status)
    one = world({"url": server.url})
    assert (await one.call(EMBEDDINGS)).kind == "backend_error"
    assert not server.listings
