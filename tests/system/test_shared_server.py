"""Several models on one server, as processors run them: a real broker, and real HTTP."""

import json
import re
from collections import Counter
from http import HTTPStatus
from typing import Any

import pytest
from aiohttp import ClientSession
from support.backend import Backend, Behaviour
from support.catalog import change
from support.ports import free_port
from support.processing import Rig, rig
from support.waiting import until

from tidemill.configuration.catalog import MODEL, SERVER
from tidemill.schemas import ids

pytestmark = pytest.mark.kafka

CAPACITY = 64
LINES = 1_500
CALL_SECONDS = 0.1


@pytest.fixture
def backend():
    """A server that only the test's own models call."""
    with Backend() as made:
        yield made


async def shares(made: Rig, backend: Backend) -> list[float]:
    """Run a batch of each model at once; returns the called parts of all at the last call of the first."""
    await made.process().ready()
    for model in made.models:
        await made.collect(await made.batch(1, model=model), 1)
    calls: Counter[str] = Counter()
    parts: list[float] = []
    rule = backend.rule

    def counted(body: dict[str, Any], nth: int) -> Behaviour:
        how = rule(body, nth)
        calls[body["model"]] += how.status == HTTPStatus.OK
        if calls[body["model"]] == LINES and not parts:
            parts.extend(calls[model] / LINES for model in made.models)
        return how

    backend.rule = counted
    backend.hold()
    batches = [await made.batch(LINES, pack=16, model=model) for model in made.models]
    backend.release()
    for batch in batches:
        await made.collect(batch, LINES)
    assert not any(mark.failed for mark in made.marks.values())
    return parts


async def test_a_server_that_queues_has_no_more_than_its_limit(kafka, backend, tmp_path) -> None:
    """However many models want it; they end together."""
    backend.rule = lambda _body, _nth: Behaviour(latency_seconds=CALL_SECONDS)
    async with rig(kafka, backend, tmp_path, count=2, max_in_flight=CAPACITY) as made:
        assert min(await shares(made, backend)) >= 0.95
    assert backend.in_flight_max <= CAPACITY
    assert backend.repeats == 0


async def test_a_server_that_refuses_is_found_out_once(kafka, backend, tmp_path) -> None:
    """Its limit is found for all models together, and few calls are refused.

    Where the machine is busy, refusals come after the slices that follow them, so the first opening may send all.
    """
    most, refused = 256, 0

    def rule(_body: object, _nth: int) -> Behaviour:
        nonlocal refused
        if backend.in_flight > CAPACITY:
            refused += 1
            return Behaviour(status=429)
        return Behaviour(latency_seconds=CALL_SECONDS)

    backend.rule = rule
    async with rig(kafka, backend, tmp_path, count=2, max_in_flight=most) as made:
        assert min(await shares(made, backend)) >= 0.95
    assert refused <= (most - CAPACITY) + 0.02 * backend.calls


async def test_settings_of_a_model_change_its_calls(kafka, backend, tmp_path) -> None:
    """Its name there, fields and headers; the values of a line stay as they were written."""
    settings = {
        "upstream_model": "adapter-7",
        "body_defaults": {"temperature": 0.5, "top_p": 1},
        "body_forced": {"seed": 7},
    }
    async with rig(kafka, backend, tmp_path, model=settings, headers={"x-team": "blue"}) as made:
        await made.process().ready()
        line = (
            b'{"custom_id":"r-0","body":{"model":"any","temperature":0.10,"seed":1,'
            b'"messages":[{"role":"user","content":"hi"}]}}\n'
        )
        batch_id = ids.new_batch_id()
        await made.send(line, made.head(batch_id, 0), key=f"{batch_id}/0")
        (done,) = await made.collect(batch_id, 1)
    (body,) = map(json.loads, backend.bodies)
    assert body == {
        "model": "adapter-7", "temperature": 0.1, "top_p": 1, "seed": 7,
        "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    assert backend.teams == {"blue": 1}
    assert done["response"]["body"]["model"] == "adapter-7", "the reply passes as it came"


async def test_a_server_that_starts_late_has_all_its_calls_soon(kafka, tmp_path, monkeypatch) -> None:
    """Calls find no server at first, as the metrics say; soon after its start it has all of them."""
    port, health_port = free_port(), free_port()
    monkeypatch.setenv("TIDEMILL_HEALTH_PORT", str(health_port))
    late = Backend(lambda _body, _nth: Behaviour(latency_seconds=0.5), port=port)
    url = f"http://127.0.0.1:{port}/v1"
    async with rig(kafka, late, tmp_path, max_in_flight=CAPACITY, url=url) as made, ClientSession() as client:

        async def servers() -> str:
            async with client.get(f"http://127.0.0.1:{health_port}/metrics") as page:
                found = re.search(rf'tidemill_model_servers{{model="{made.model}"}} (\d+)', await page.text())
            return "" if found is None else found[1]

        async def are(number: str) -> bool:
            return await servers() == number

        await made.process().ready()
        batch_id = await made.batch(LINES, pack=16)
        await until(lambda: are("0"), "the metrics of a server that is down")
        with late:
            await until(lambda: late.in_flight == CAPACITY, "all calls")
            assert await servers() == "1"
            await made.collect(batch_id, LINES)
        assert not any(mark.failed for mark in made.marks.values())


async def test_servers_change_while_a_batch_runs(kafka, backend, tmp_path) -> None:
    """The name of one is resolved, and its limit halved; another one comes, and the first goes."""
    lines = 4_000

    def rule(body: dict[str, Any], _nth: int) -> Behaviour:
        # Calls do not end together: as long as a server is called, some are in flight.
        return Behaviour(latency_seconds=0.06 + int(body["messages"][0]["content"].split()[1]) % 8 / 100)

    backend.rule = rule
    port = backend.url.split(":")[2].split("/")[0]
    first = {"url": f"http://localhost:{port}/v1", "discover": "dns"}
    with Backend(rule) as other:
        async with rig(kafka, backend, tmp_path, max_in_flight=32, **first) as made:
            await made.process().ready()
            batch_id = await made.batch(lines, pack=16)
            await until(lambda: backend.in_flight == 32, "all places in use")
            assert {headers["host"] for headers in backend.headers} == {f"localhost:{port}"}
            name = f"localhost:{port}"
            await change(kafka, {SERVER + name: {**first, "max_in_flight": 8}})
            await until(lambda: backend.in_flight <= 8, "a lower limit")
            model = {"max_in_flight": 32}
            await change(kafka, {
                f"{SERVER}other": {"url": other.url, "max_in_flight": 16},
                MODEL + made.model: {**model, "servers": [name, "other"]},
            })  # fmt: skip
            await until(lambda: other.in_flight == 16, "another server")
            await change(kafka, {MODEL + made.model: {**model, "servers": ["other"]}, SERVER + name: None})
            await until(lambda: not backend.in_flight, "the first one's end")
            calls = backend.calls
            await made.collect(batch_id, lines)
            assert backend.calls == calls
            assert calls + other.calls == lines
            assert not any(mark.failed for mark in made.marks.values())
