"""Calls of batches that are over: aborted once their answers cannot count."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from support.dispatching import World, joinable
from support.waiting import until

from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.in_flight import CallsInFlight
from tidemill.processors.failures import Answer, FailureKind
from tidemill.schemas import ids


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("has_begun", [False, True])
async def test_calls_of_a_closed_batch_are_aborted(tmp_path: Path, inputs: int, *, has_begun: bool) -> None:
    """Their seats are free at once, their records acknowledged, and nothing is held against the servers."""
    world = World(tmp_path, grace=0.0, inputs_per_call=inputs, is_grouped=inputs == 1)
    world.line = joinable
    world.inference.gate.clear()
    first, second = ids.new_batch_id(), ids.new_batch_id()
    world.publish(first, 0, 40)
    world.publish(first, 40, 1, is_large=True)
    if has_begun:
        await until(lambda: world.inference.in_flight == 4, "calls")
    world.end(first)
    world.publish(second, 0, 4 * inputs)
    await until(
        lambda: world.inference.in_flight == world.fleet.in_flight == 4 and len(world.tap.acked) == 2, "the calls"
    )
    world.inference.gate.set()
    await world.finish()
    assert {batch_id for batch_id, _ in world.log.lines} == {second}
    assert not world.fleet.in_flight
    for one in world.fleet.backends:
        assert (one.breaker.row, one.server.breaker.row, one.failed_part, one.server.company) == (0, 0, 0.0, 0)
        assert one.server.limit.found == 4


async def test_the_grace_of_a_batch_may_end_early(tmp_path: Path) -> None:
    """Once the batch itself has ended, no call of it goes on."""
    world = World(tmp_path, grace=600.0)
    world.inference.gate.clear()
    batch_id = ids.new_batch_id()
    world.publish(batch_id, 0, 10)
    await until(lambda: world.inference.in_flight == 4, "calls")
    world.end(batch_id)
    for _ in range(9):
        await asyncio.sleep(0)
    assert world.inference.in_flight == 4
    world.closed.close(batch_id)
    await world.finish()
    assert not world.inference.in_flight


class _Bucket(TokenBucket):
    """Counts what it gets back."""

    given_back = 0

    def give_back(self, expected: float) -> None:
        self.given_back += 1
        super().give_back(expected)


@pytest.mark.parametrize(
    ("inputs", "is_large", "is_answered"),
    [(1, False, False), (1, True, False), (3, False, False), (1, False, True)],
    ids=["a call", "a call of a large line", "a call for several lines", "a call that is judged"],
)
async def test_an_aborted_call_keeps_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: int, *, is_large: bool, is_answered: bool
) -> None:
    """The server may have used them."""
    bucket = _Bucket(6e9)
    world = World(tmp_path, grace=0.0, inputs_per_call=inputs, buckets=(bucket,))
    world.line = joinable
    world.inference.gate.clear()

    async def judge(*_: object) -> None:
        await world.inference.gate.wait()

    async def refuse(*_: object) -> Answer:
        world.inference.in_flight += 1
        return Answer(404, b"{}")

    if is_answered:
        monkeypatch.setattr(world.inference, "post", refuse)
        monkeypatch.setattr(world.stage._caller, "checked_endpoint", judge)
    batch_id = ids.new_batch_id()
    for first in range(0, 4 * inputs, 1 if is_large else 4 * inputs):
        world.publish(batch_id, first, 1 if is_large else 4 * inputs, is_large=is_large)
    await until(lambda: world.inference.in_flight == 4, "calls")
    world.end(batch_id)
    await until(lambda: not world.fleet.in_flight, "the abort")
    assert bucket.given_back == 0
    await world.finish()


async def test_a_call_that_is_not_made_gives_its_tokens_back(tmp_path: Path) -> None:
    """Its line cannot be parsed."""
    bucket = _Bucket(6e9)
    world = World(tmp_path, buckets=(bucket,))
    world.line = lambda *_: b"{"
    world.publish(ids.new_batch_id(), 0, 1)
    await world.finish()
    assert bucket.given_back == 1


@pytest.mark.parametrize("inputs", [1, 3])
async def test_calls_in_flight_at_the_deadline_may_end(tmp_path: Path, inputs: int) -> None:
    """They may use the rest of their own time while results has not closed the batch."""
    world = World(tmp_path, inputs_per_call=inputs)
    world.line = joinable
    world.inference.gate.clear()
    batch_id = ids.new_batch_id()
    world.ahead = 590.0
    world.tap.dropped.add(batch_id)
    world.publish(batch_id, 0, 40)
    await until(lambda: world.inference.in_flight == 4, "calls")
    called = world.stage.busy
    world.ahead = 601.0
    assert min(world.inference.seconds) == 600.0
    world.inference.gate.set()
    await world.finish()
    assert len(world.log.lines) == called


class _Line:
    """A line and its head."""

    batch_id = "b"

    @property
    def head(self) -> "_Line":
        return self


class _Failing:
    """A caller whose call has failed: a task judges that, and gives the permit back if it is cancelled."""

    def __init__(self) -> None:
        self.pool = self
        self.released: list[object] = []

    def release(self, permit: object, **_: bool) -> None:
        self.released.append(permit)

    def begin(self, line: object, permit: object, on_end: Callable[..., None]) -> Callable[[], None]:
        self.fail = partial(on_end, line, permit, b"", FailureKind.CONNECT)
        return lambda: None

    def judge_small(self, *_: object) -> None:
        return None

    async def judge(self, _: object, permit: object, *_rest: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.release(permit)


async def test_an_abort_in_the_turn_of_a_failure_gives_the_permit_back() -> None:
    """The task that judges the failure has not begun then."""
    caller, permit, aborted = cast("Any", _Failing()), cast("Any", object()), list[Any]()
    calls = CallsInFlight(caller, lambda *_: None, aborted.extend)
    line = cast("Any", _Line())
    calls.start(line, permit)
    calls.abort(line.batch_id, 0.0)
    asyncio.get_running_loop().call_soon(caller.fail)
    await until(lambda: aborted == [line], "the abort")
    assert caller.released == [permit]
