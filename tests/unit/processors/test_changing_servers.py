"""Servers that come, change and go while two models call them."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
import trustme
from prometheus_client import REGISTRY
from support.servers_at_work import CALL_SECONDS, Make, force, simulated

from tidemill.configuration.serving import serving
from tidemill.schemas.resources.waiting import Reason


def test_each_change_is_in_force_at_once_and_no_line_is_lost() -> None:
    """Limits, a drain, servers that come and go under calls in flight; with prefix groups and without."""

    async def case(make: Make) -> None:
        for prefix_bytes in (None, 64):
            world = make(prefix_bytes=prefix_bytes)
            world.server("gpu-1", max_in_flight=64)
            world.model("a", "gpu-1")
            world.model("b", "gpu-1")
            world.apply()
            for name in "ab":
                world.publish(name, name, 5_000)
            assert (await force(world))["gpu-1"] == 64
            server = world.found("gpu-1")
            world.server("gpu-1", max_in_flight=32, headers={"x-team": "new"})
            assert (await force(world))["gpu-1"] == 32
            world.server("gpu-2", max_in_flight=16)
            world.model("a", "gpu-1", "gpu-2")
            assert await force(world) == {"gpu-1": 32, "gpu-2": 16}
            world.server("gpu-1", max_in_flight=32, drain=True)
            assert await force(world) == {"gpu-2": 16}
            world.server("gpu-1", max_in_flight=64)
            world.model("b", "gpu-1", paused=True)
            world.apply()
            assert world.found("gpu-1") is server
            assert server.proven_calls(world.loop.time()) == 64, "what was found before the limit was halved"
            assert await force(world) == {"gpu-1": 64, "gpu-2": 16}
            del world.named["gpu-2"]
            world.model("a", "gpu-1")
            world.model("b", "gpu-1")
            in_flight = world.engines.in_flight["gpu-2"]
            sent = world.engines.sent["gpu-2"]
            world.apply()
            assert world.found("gpu-2").in_flight == in_flight > 0
            assert ("gpu-2", 80) not in world.engines.followed[-1]
            assert await force(world) == {"gpu-1": 64}
            assert world.engines.sent["gpu-2"] == sent
            assert [one.name for one in world.servers] == ["gpu-1"]
            await world.end("a", "b", lines=5_000)
            assert world.engines.keys["gpu-1"] == {"", "new"}

    simulated(case)


def test_a_model_without_servers_waits_and_goes_on() -> None:
    """Its last server goes, and later another one comes; the other model has all of the server meanwhile."""

    async def case(make: Make) -> None:
        world = make(prefix_bytes=64)
        world.server("gpu-1", max_in_flight=32)
        for name in "ab":
            world.model(name, "gpu-1")
        world.apply()
        for name in "ab":
            world.publish(name, name, 4_000)
        await asyncio.sleep(1)
        model = world.models.pop("a")
        assert await force(world) == {"gpu-1": 32}
        before = world.log.ends["a"]
        await asyncio.sleep(5)
        assert world.log.ends["a"] == before
        world.server("gpu-3", max_in_flight=8)
        world.models["a"] = model.model_copy(update={"servers": ("gpu-3",)})
        assert await force(world) == {"gpu-1": 32, "gpu-3": 8}
        await world.end("a", "b", lines=4_000)

    simulated(case)


def test_the_pools_of_removed_models_go() -> None:
    """Once the dispatcher of a model is gone; a report of 2,000 pools would take a quarter of a second."""

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu-1", max_in_flight=32)
        for number in range(100):
            world.models.clear()
            world.model("a", "gpu-1")
            world.model(f"lora-{number}", "gpu-1")
            world.servers.apply(serving(world.named, world.models))
        assert list(world.servers.pools) == ["a", "lora-99"]
        world.apply()
        world.publish("lora-99", "b", 1_000)
        await asyncio.sleep(0.1)
        pool = world.servers.pools["lora-99"]
        model = world.models.pop("lora-99")
        for _ in range(2):
            world.apply()
        assert world.servers.pools["lora-99"] is pool, "its lines wait"
        world.models["lora-99"] = model
        world.apply()
        await world.end("b", lines=1_000)
        del world.models["lora-99"]
        await world.dispatchers.pop("lora-99").close()
        world.apply()
        assert list(world.servers.pools) == ["a"]

    simulated(case)


def test_a_server_is_called_once_its_file_is_there(tmp_path: Path) -> None:
    """Without a change of the settings, and no line fails meanwhile."""
    file = tmp_path / "ca.pem"

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu-1", max_in_flight=32, ca_file=file)
        world.model("a", "gpu-1")
        world.apply()
        world.publish("a", "a", 1_000)
        await asyncio.sleep(10)
        assert world.found("gpu-1").drain is Reason.ACCESS
        assert not world.engines.sent
        trustme.CA().cert_pem.write_to_path(file)
        await world.end("a", lines=1_000, seconds=60)
        assert world.servers._later is None

    simulated(case)


def test_a_server_with_a_malformed_key_is_not_called(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is access, the log names the variable once and quotes no key, and no call is tried."""
    monkeypatch.setenv("TIDEMILL_KEY_BAD", "hush hush")

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu-1", max_in_flight=4, api_key_env="TIDEMILL_KEY_BAD")
        world.model("a", "gpu-1")
        world.apply()
        world.publish("a", "a", 20)
        await asyncio.sleep(600)
        assert world.found("gpu-1").drain is Reason.ACCESS
        assert not world.engines.sent

    simulated(case)
    named = [record for record in caplog.records if "TIDEMILL_KEY_BAD" in record.getMessage()]
    assert len(named) == 1
    assert "hush" not in caplog.text


def test_models_that_come_to_share_a_server_share_it_fairly() -> None:
    """The clocks of their projects become one, and two again; both projects get half where they meet."""

    async def case(make: Make) -> None:
        world = make()
        for name in ("gpu-1", "gpu-2"):
            world.server(name, max_in_flight=32)
        world.model("a", "gpu-1")
        world.model("b", "gpu-2")
        world.apply()
        world.publish("a", "p-a", 40_000, project="p")
        await asyncio.sleep(10)
        world.publish("a", "q-a", 40_000, project="q")
        world.publish("b", "q-b", 40_000, project="q")
        world.model("b", "gpu-1")
        world.apply()
        assert world.servers.pools["a"].clocks is world.servers.pools["b"].clocks
        before = Counter(world.log.ends)
        await asyncio.sleep(20)
        gained = Counter(world.log.ends) - before
        assert 0.45 * gained.total() <= gained["p-a"] <= 0.55 * gained.total()
        assert gained["q-b"] > 0.1 * gained.total()
        world.model("b", "gpu-2")
        world.apply()
        assert world.servers.pools["a"].clocks is not world.servers.pools["b"].clocks
        assert not world.found("gpu-1").queue.is_shared
        before = Counter(world.log.ends)
        await asyncio.sleep(10)
        gained = Counter(world.log.ends) - before
        assert abs(gained["p-a"] - gained["q-a"]) <= 0.05 * gained["p-a"]
        assert gained["q-b"] >= 0.95 * 10 / CALL_SECONDS * 32, "it has a server of its own"

    simulated(case)


def test_changed_settings_end_the_pause_of_a_server() -> None:
    """A server that was down, perhaps for a wrong key, is probed at once; with another address, it is another."""

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu-1", max_in_flight=32)
        world.model("a", "gpu-1")
        world.engines.down = {"gpu-1"}
        world.apply()
        world.publish("a", "a", 2_000)
        await asyncio.sleep(60)
        server = world.found("gpu-1")
        assert server.breaker.until > world.loop.time()
        sent = world.engines.sent["gpu-1"]
        assert sent < 40
        world.server("gpu-1", max_in_flight=32, headers={"x-team": "new"})
        world.apply()
        assert server.in_flight == 1, "a probe"
        world.server("gpu-1", url="http://gpu-9/v1", max_in_flight=32)
        world.apply()
        assert world.found("gpu-1").breaker.failures == 0
        await world.end("a", lines=2_000, seconds=60)

    simulated(case)


def test_a_server_with_another_address_is_the_one_that_is_shown() -> None:
    """Not the one of its name whose calls are still in flight; that one is forgotten with its last result."""

    async def case(make: Make) -> None:
        world = make(call_seconds=5.0)
        world.server("gpu-1", max_in_flight=8)
        world.model("a", "gpu-1")
        world.apply()
        world.publish("a", "a", 40)
        await asyncio.sleep(1)
        before = world.found("gpu-1")
        assert before.in_flight == 8
        world.server("gpu-1", url="http://gpu-9/v1", max_in_flight=6)
        world.apply()
        assert [(one.name, one.base) for one in world.servers] == [
            ("gpu-1", "http://gpu-1/v1"), ("gpu-1", "http://gpu-9/v1")
        ]  # fmt: skip
        world.servers.show(lambda: world.models)
        labels = {"server": "gpu-1"}
        assert REGISTRY.get_sample_value("tidemill_server_calls_limit", labels) == 6
        await asyncio.sleep(6)
        assert not before.is_used
        assert [one.base for one in world.servers] == ["http://gpu-9/v1"]
        await world.end("a", lines=40)

    simulated(case)


def test_processes_keep_their_parts_of_servers_that_change() -> None:
    """A new server, and one with a further model, get no more calls than before from all processes together."""

    async def case(make: Make) -> None:
        worlds = [make() for _ in range(2)]
        for world in worlds:
            world.server("gpu-1", max_in_flight=64, tokens_per_minute=60_000)
            world.model("a", "gpu-1")
            world.apply()
        for world, part in zip(worlds, (0.75, 0.25), strict=True):
            world.dispatchers["a"].set_part(part)
            world.server("gpu-2", max_in_flight=64)
            world.model("a", "gpu-1", "gpu-2", max_in_flight=96, tokens_per_minute=30_000)
            world.model("b", "gpu-1")
            world.servers.apply(serving(world.named, world.models))
        of_a = [[world.found(name).part for name in ("gpu-1", "gpu-2")] for world in worlds]
        assert of_a == [[0.75, 0.75], [0.25, 0.25]]
        assert [world.servers.pools["a"].in_flight_max for world in worlds] == [72, 24]
        assert sum(world.found("gpu-1").part for world in worlds) == 1.0
        for world in worlds:
            del world.models["b"]
            world.apply()
        assert [world.found("gpu-1").part for world in worlds] == [0.75, 0.25]

    simulated(case)


def test_no_call_sees_half_of_a_change() -> None:
    """One change ends the drain of a server and adds another, while lines with common prefixes wait."""

    async def case(make: Make) -> None:
        world = make(prefix_bytes=64)
        for name in ("gpu-1", "gpu-2"):
            world.server(name, max_in_flight=8)
        world.server("gpu-3", max_in_flight=8, drain=True)
        world.model("a", "gpu-1", "gpu-2", "gpu-3")
        world.apply()
        world.publish("a", "a", 2_000)
        await force(world)
        world.server("gpu-3", max_in_flight=8)
        world.server("gpu-4", max_in_flight=8)
        world.model("a", "gpu-1", "gpu-2", "gpu-3", "gpu-4")
        world.apply()
        await force(world)
        assert [world.found(name).in_flight for name in ("gpu-3", "gpu-4")] == [8, 8]
        await world.end("a", lines=2_000)

    simulated(case)
