"""Several models on one server, as processors run them: a real broker, and real HTTP."""

import json

import pytest
from support.backend import Backend, Behaviour
from support.processing import Rig, rig
from support.waiting import until

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
    """Run a batch of each model at once; returns the finished parts of all at the end of the first."""
    await made.process().ready()
    backend.hold()
    batches = [await made.batch(LINES, pack=16, model=model) for model in made.models]
    backend.release()
    parts: list[float] = []

    def counts() -> list[int]:
        return [sum(1 for place in made.lines if place[0] == batch) for batch in batches]

    async def ended() -> bool:
        await made.poll()
        found = counts()
        if LINES in found and not parts:
            parts.extend(count / LINES for count in found)
        return min(found) == LINES

    await until(ended, "the ends of all batches", seconds_max=120)
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
    """Its limit is found for all models together, and few calls are refused."""
    refused = 0

    def rule(_body: object, _nth: int) -> Behaviour:
        nonlocal refused
        if backend.in_flight > CAPACITY:
            refused += 1
            return Behaviour(status=429)
        return Behaviour(latency_seconds=CALL_SECONDS)

    backend.rule = rule
    async with rig(kafka, backend, tmp_path, count=2, max_in_flight=256) as made:
        assert min(await shares(made, backend)) >= 0.95
    assert refused <= 0.02 * backend.calls


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
