"""Looking at a backend's metrics, over real HTTP."""

import asyncio
from typing import cast

import pytest
from support.backend import Backend as Server
from support.servers import configured
from support.waiting import until

from tidemill.configuration.servers import Model
from tidemill.processors.backends import metrics_poller
from tidemill.processors.backends.metrics_poller import HEADROOM_SECONDS_MAX, POLL_SECONDS, SILENT_SECONDS_MAX
from tidemill.processors.backends.permit_queue import Contender
from tidemill.processors.backends.server_settings import Target, poller
from tidemill.processors.failures import Answer
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.limits.concurrency_limit import START_CALLS
from tidemill.processors.limits.headroom import UNKNOWN_CALLS, WATCH_SECONDS


@pytest.fixture
def server():
    """A backend, which has metrics once a test sets its capacity."""
    with Server() as made:
        yield made


@pytest.fixture
async def upstream():
    """The client of the calls."""
    made = HttpUpstream()
    yield made
    await made.close()


class Pages:
    """A client that fetches the page in a list."""

    def __init__(self, page: list[str]) -> None:
        self._page = page

    async def get(self, *_: object) -> Answer:
        return Answer(200, self._page[0].encode())


class World:
    """A model of one backend, and the poller of its metrics."""

    def __init__(self, upstream: HttpUpstream, **named: object) -> None:
        models = {"m": Model.model_validate({"backends": [named], "max_in_flight": 64})}
        self.now = 1000.0
        self.told = 0
        (self.backend,) = configured(models, clock=lambda: self.now)
        self.backend.set_part(1.0, self.now)
        self.backend.queue.join(Contender(lambda: None, self._told))
        self.poller = poller(self.backend, Target(models["m"].backends[0]), upstream, lambda: self.now)

    async def poll(self) -> float:
        """Poll once; gives the pause after it."""
        assert self.poller is not None
        await self.poller.poll()
        return self.poller.pause_seconds

    def _told(self) -> bool:
        self.told += 1
        return False


async def test_what_others_leave_is_read(server: Server, upstream: HttpUpstream, monkeypatch) -> None:
    """With the key of the calls, each second; the poller tells the stage, since there may be room now."""
    monkeypatch.setenv("KEY", "sk-1")
    server.capacity, server.others = 64, 60
    world = World(upstream, url=server.url, api_key_env="KEY", headroom=True)
    assert world.backend.allowed(world.now) == UNKNOWN_CALLS
    assert await world.poll() == POLL_SECONDS
    world.now += 1
    assert world.backend.allowed(world.now) == START_CALLS
    assert world.told == 1
    assert server.looks == {"Bearer sk-1": 1}
    server.others = 80
    assert await world.poll() == WATCH_SECONDS
    world.now += WATCH_SECONDS
    assert await world.poll() == POLL_SECONDS
    assert world.backend.allowed(world.now) == 0


async def test_a_target_that_cannot_be_measured_is_logged(
    server: Server, upstream: HttpUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; the server's metrics have no histogram, so a quarter of its capacity stays free."""
    server.capacity = 64
    world = World(upstream, url=server.url, headroom={"ttft_ms": 60})
    await world.poll()
    await world.poll()
    assert [record.levelname for record in caplog.records if "histogram" in record.message] == ["WARNING"]


async def test_what_waits_holds_the_limit(server: Server, upstream: HttpUpstream) -> None:
    """No trial begins until the backend's metrics have been missing for a while."""
    server.capacity, server.others = 1, 2
    world = World(upstream, url=server.url)
    limit = world.backend.limit
    await world.poll()
    limit.tick(64, world.now)
    assert limit.ripe_at is None
    server.capacity = None
    world.now += 60
    await world.poll()
    limit.tick(64, world.now)
    assert limit.ripe_at is not None


async def test_a_backend_without_metrics_is_asked_rarely(
    server: Server, upstream: HttpUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """More and more rarely, at the usual rate once it has metrics, and more often if headroom needs them."""
    world = World(upstream, url=server.url)
    pauses = [await world.poll() for _ in range(8)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == SILENT_SECONDS_MAX
    server.capacity = 8
    assert await world.poll() == POLL_SECONDS
    spare = World(upstream, url="http://127.0.0.1:1/v1", headroom=True)
    assert [await spare.poll() for _ in range(8)][-1] == HEADROOM_SECONDS_MAX
    assert spare.backend.allowed(spare.now) == 1
    assert [record.message for record in caplog.records] == [
        "the metrics of 127.0.0.1:1 cannot be read: headroom allows one call"
    ]


@pytest.mark.parametrize("number", ["1e308", "9007199254740992", "1e15"])
async def test_a_page_with_an_impossible_number_is_not_read(number: str) -> None:
    """A reading has only numbers that reports can carry; the next good page is read."""
    page = [f"vllm:num_requests_running {number}\nvllm:num_requests_waiting 0\n" * 10]
    world = World(cast("HttpUpstream", Pages(page)), url="http://a/v1", headroom=True)
    await world.poll()
    assert world.backend.fresh_metrics(world.now) is None
    page[0] = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n"
    await world.poll()
    assert (said := world.backend.fresh_metrics(world.now)) is not None
    assert said.running == 3


async def test_the_poller_goes_on_after_a_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as silence and is logged once, however often it comes."""
    page = ["vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n"]
    world = World(cast("HttpUpstream", Pages(page)), url="http://a/v1", headroom=True)
    assert world.poller is not None
    monkeypatch.setattr(metrics_poller, "POLL_SECONDS", 0.001)
    polls = 0

    def fail(*_: object) -> None:
        nonlocal polls
        polls += 1
        if polls < 4:
            raise ZeroDivisionError

    monkeypatch.setattr(type(world.backend), "apply_metrics", fail)
    task = asyncio.create_task(world.poller.run())
    await until(lambda: polls >= 5, "a reading")
    assert world.poller.pause_seconds == 0.001
    task.cancel()
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_a_key_goes_nowhere_else(server: Server, upstream: HttpUpstream, monkeypatch) -> None:
    """An address of its own for the metrics gets it only at the same place."""
    monkeypatch.setenv("KEY", "sk-1")
    server.capacity = 8
    metrics = server.url.replace("/v1", "/metrics")
    other = World(upstream, url="http://127.0.0.1:1/v1", metrics=metrics, api_key_env="KEY")
    assert await other.poll() == POLL_SECONDS
    same = World(upstream, url=server.url, metrics=metrics, api_key_env="KEY")
    assert await same.poll() == POLL_SECONDS
    assert server.looks == {"": 1, "Bearer sk-1": 1}


async def test_who_is_not_looked_at(upstream: HttpUpstream) -> None:
    """Polling that is switched off, and a server that gets no calls: its headroom is then unknown."""
    assert not World(upstream, url="http://127.0.0.1:1/v1", metrics=False).poller
    assert not World(upstream, url="http://127.0.0.1:1/v1", drain=True).poller
    with pytest.raises(ValueError, match="switched off"):
        World(upstream, url="http://127.0.0.1:1/v1", metrics=False, headroom=True)
