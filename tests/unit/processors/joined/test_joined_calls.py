"""Lines in calls of several inputs: which go together, and what a failed call means for each of them."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dispatching import ArrayInference, World, joinable
from support.waiting import until

from tidemill.processors.backends.token_bucket import Taken, TokenBucket
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.joined.input_bound import ANSWERED_MIN, REFUSED_MAX, InputBound
from tidemill.processors.memory_budget import LargeReplies
from tidemill.schemas import ids

REFUSED = Answer(400, b'{"error":{"message":"One input is bad."}}')


class Joining(World):
    """A stage with calls of several inputs."""

    inference: ArrayInference

    def __init__(self, folder: Path, *, inputs: int = 32, limit: int = 1, **more: Any) -> None:
        super().__init__(folder, inputs_per_call=inputs, limit=limit, **more)
        self.line = joinable

    async def run(self, lines: int) -> list[dict[str, Any]]:
        """One batch; returns its result lines in their order."""
        batch_id = ids.new_batch_id()
        self.publish(batch_id, 0, lines)
        await self.finish()
        assert set(self.log.lines.values()) == {1}
        found = [json.loads(self.log.results[batch_id, index]) for index in range(lines)]
        assert [each["custom_id"] for each in found] == [str(index) for index in range(lines)]
        for index, each in enumerate(found):
            if each["error"] is None and each["response"]["status_code"] == 200:
                (item,) = each["response"]["body"]["data"]
                assert item == {"index": 0, "embedding": f"{batch_id} {index}"}
        return found


def _of(number: int, outcome: Answer | FailureKind) -> Callable[[list[str]], Answer | FailureKind | None]:
    """An answer to each call with one line of a batch."""
    return lambda inputs: outcome if any(text.endswith(f" {number}") for text in inputs) else None


def _failed(found: list[dict[str, Any]]) -> list[int]:
    return [index for index, each in enumerate(found) if each["error"] or each["response"]["status_code"] != 200]


records = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 8)), min_size=1, max_size=25)


conditions = st.tuples(st.integers(0, 2**32), st.sampled_from([0.0, 0.3]), st.integers(1, 6))


@given(records, conditions, st.sets(st.integers(0, 24)))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_each_line_once_whatever_happens(
    tmp_path: Path, published: list[tuple[int, int, int]], condition: tuple[int, float, int], moves: set[int]
) -> None:
    """Overlapping records, faults, rebalances: one good call and one result of its own for each line."""
    seed, faults, limit = condition
    world = Joining(tmp_path, inputs=4, seed=seed, faults=faults, limit=limit)
    batches = [ids.new_batch_id() for _ in range(3)]
    wanted = set()
    for number, (which, first, lines) in enumerate(published):
        world.publish(batches[which], first, lines)
        wanted |= {(batches[which], n) for n in range(first, first + lines)}
        await asyncio.sleep(0)
        if number in moves:
            assert await world.stage.drain(20)
            acked, known = len(world.tap.acked), world.tap.records
            world.window.close()
            world.stage.forget_waiting()
            world.assign()
            for batch_id, start, count in known[acked:]:
                world.publish(batch_id, start, count)
    await world.finish()
    assert set(world.log.lines) == wanted
    assert set(world.log.lines.values()) == {1}
    assert set(world.inference.good.values()) <= {1}
    assert world.inference.in_flight_max <= limit
    for (batch_id, index), text in world.log.results.items():
        (item,) = json.loads(text)["response"]["body"]["data"]
        assert item == {"index": 0, "embedding": f"{batch_id} {index}"}


async def test_waiting_lines_go_together_and_count_as_one_call(tmp_path: Path) -> None:
    """A line takes those along that wait, up to the bound, and waits for none; the counts add up."""
    world = Joining(tmp_path, inputs=16)
    world.inference.gate.clear()
    batch_id = ids.new_batch_id()
    world.publish(batch_id, 0, 1)
    await until(lambda: world.inference.in_flight == 1, "the first line")
    world.publish(batch_id, 1, 40)
    world.inference.gate.set()
    await world.finish()
    assert world.inference.sizes == {1: 1, 16: 2, 8: 1}
    usages = [json.loads(text)["response"]["body"]["usage"] for text in world.log.results.values()]
    assert sum("tidemill" in usage for usage in usages) == 40
    assert sum(usage["prompt_tokens"] for usage in usages) == sum(map(len, world.inference.good))
    assert {mark.attempts for mark in world.log.marks.values()} == {1}
    assert world.log.records <= 4, "the results of a call share a record"


async def test_a_bad_line_harms_only_itself(tmp_path: Path) -> None:
    """Halves, then single lines: a line in 32 costs 10 calls more."""
    world = Joining(tmp_path)
    world.inference.answer = _of(13, REFUSED)
    found = await world.run(32)
    assert _failed(found) == [13]
    assert found[13]["response"]["body"] == {"error": {"message": "One input is bad."}}
    assert world.inference.sizes == {32: 1, 16: 2, 8: 2, 4: 2, 2: 2, 1: 2}


@pytest.mark.parametrize(
    "outcome",
    [FailureKind.READ, FailureKind.TIMEOUT, Answer(500, b"{}"), Answer(403, b"{}"), Answer(503, b"{}"),
     Answer(200, b'{"error":{"message":"out of memory","code":500}}')],
    ids=str,
)  # fmt: skip
async def test_a_line_that_breaks_its_server_is_found(tmp_path: Path, outcome: Answer | FailureKind) -> None:
    """The other lines of its call fail first, but end well; the line fails by the evidence of other answers."""
    world = Joining(tmp_path, limit=4)
    world.inference.answer = _of(5, outcome)
    assert _failed(await world.run(40)) == [5]


async def test_a_server_that_is_down_fails_no_line(tmp_path: Path) -> None:
    """While it answers nothing, nothing counts against a line; afterwards all go together again."""
    world = Joining(tmp_path, limit=2)
    down = iter([FailureKind.CONNECT, Answer(429, b"{}"), Answer(503, b"{}"), Answer(401, b"{}")] * 3)
    world.inference.answer = lambda _: next(down, None)
    assert not _failed(await world.run(100))
    assert max(world.inference.sizes) == 32


@pytest.mark.parametrize(
    "indices", [lambda n: range(n - 1), lambda n: range(n + 1), lambda n: [0] * n, lambda n: range(1, n + 1)]
)
async def test_a_reply_that_does_not_fit_mixes_up_no_lines(
    tmp_path: Path, indices: Callable[[int], list[int]]
) -> None:
    """Too few items, too many, one for all, or none with index 0: the lines go one by one, and end well."""
    world = Joining(tmp_path)

    def answer(inputs: list[str]) -> Answer | None:
        items = [{"index": index, "embedding": "wrong"} for index in indices(len(inputs))]
        return Answer(200, json.dumps({"data": items}).encode()) if len(inputs) > 1 else None

    world.inference.answer = answer
    assert not _failed(await world.run(32))
    assert world.inference.sizes[1] == 32


@pytest.mark.parametrize(
    "outcome", [Answer(413, b"{}"), FailureKind.TOO_LARGE, Answer(200, b'[{"object":"text_completion"}]')]
)
async def test_calls_become_as_small_as_the_server_takes_them(
    tmp_path: Path, outcome: Answer | FailureKind, caplog: pytest.LogCaptureFixture
) -> None:
    """Four refused calls halve the bound, so that a server with a smaller one costs few calls more."""
    world = Joining(tmp_path, inputs=64)
    world.inference.answer = lambda inputs: outcome if len(inputs) > 8 else None
    assert not _failed(await world.run(2000))
    assert sum(count for size, count in world.inference.sizes.items() if size > 8) <= 24
    assert world.inference.sizes[8] >= 240
    assert [
        f"calls with {size} inputs to m are refused, or their replies cannot be divided;"
        f" the next have at most {size // 2}"
        for size in (64, 32, 16)
    ] == [each.getMessage() for each in caplog.records if "inputs" in each.getMessage()]


@pytest.mark.parametrize("status", [200, 201, 400, 404, 500, 503])
async def test_the_memory_of_a_large_reply_is_freed(tmp_path: Path, status: int) -> None:
    """Whether the reply is divided, fits no line (201 here), or is an error."""
    world = Joining(tmp_path, limit=2)
    replies = LargeReplies()

    def answer(inputs: list[str]) -> Answer | None:
        if world.inference.sizes.total() > 3:
            return None
        share = replies.share(lambda: None, lambda: None)
        share.grow(100_000)
        share.finish()
        items = [{"index": index, "embedding": text} for index, text in enumerate(inputs)]
        body = {"data": items[status == 201 :]} if status < 300 else {"error": {"message": "large"}}
        return Answer(status, json.dumps(body).encode(), share=share)

    world.inference.answer = answer
    found = await world.run(64)
    assert replies.used == 0
    assert not _failed(found)


async def test_one_bad_choice_fails_its_own_line(tmp_path: Path) -> None:
    """An error in one item of the reply says nothing of the others."""
    world = Joining(tmp_path)

    def choice(index: int, text: str) -> dict[str, Any]:
        reason = "error" if text.endswith(" 3") else "stop"
        return {"index": index, "text": text, "finish_reason": reason, "error": {"code": 400, "message": "bad"}}

    def answer(inputs: list[str]) -> Answer:
        choices = [choice(index, text) for index, text in enumerate(inputs)]
        return Answer(200, json.dumps({"choices": choices}).encode())

    world.inference.answer = answer
    world.line = lambda batch_id, n: b'{"custom_id":"%d","body":{"prompt":"%b %d"}}' % (n, batch_id.encode(), n)
    world.url = "/v1/completions"
    batch_id = ids.new_batch_id()
    world.publish(batch_id, 0, 8)
    await world.finish()
    assert world.log.failed == {(batch_id, 3)}
    assert world.inference.sizes == {8: 1}
    for index in range(8):
        (found,) = json.loads(world.log.results[batch_id, index])["response"]["body"]["choices"]
        assert (found["index"], found["text"]) == (0, f"{batch_id} {index}")


async def test_only_lines_of_one_batch_with_the_same_parameters_go_together(tmp_path: Path) -> None:
    """Each other line goes in a call of its own; a large one, in the store, goes alone."""
    world = Joining(tmp_path)
    world.line = lambda batch_id, n: b'{"custom_id":"%d","body":{"input":"%b %d","user":"%d"}}' % (
        n, batch_id.encode(), n, n % 2,
    )  # fmt: skip
    for _ in range(2):
        batch_id = ids.new_batch_id()
        world.publish(batch_id, 0, 8)
        world.publish(batch_id, 8, 1, is_large=True)
    await world.finish()
    assert world.inference.sizes == {4: 4, 1: 2}


async def test_a_limit_of_tokens_bounds_a_call(tmp_path: Path) -> None:
    """A call takes no more than the bucket holds: 4,000 tokens here, and a line is expected to use some 270."""
    world = Joining(tmp_path, buckets=(TokenBucket(60.0 * 4_000),))
    world.inference.gate.clear()
    world.publish(ids.new_batch_id(), 0, 64)
    await until(lambda: world.inference.in_flight == 1, "the first call")
    assert world.stage.busy == 14
    world.inference.gate.set()
    await world.finish()


class SettledBucket(TokenBucket):
    """Notes the number of lines of each call whose estimate is replaced."""

    def __init__(self) -> None:
        super().__init__(60.0 * 4_000)
        self.settled: list[int] = []

    def settle(self, taken: Taken, used: int, size: int, lines: int = 1) -> None:
        """See the class."""
        self.settled.append(lines)
        super().settle(taken, used, size, lines)


@pytest.mark.parametrize("reason", ["stop", "error"])
async def test_unknown_counts_leave_the_estimate_of_a_call(tmp_path: Path, reason: str) -> None:
    """If one line of 8 fails, the counts of the others alone are too few. It runs again, alone."""
    bucket = SettledBucket()
    world = Joining(tmp_path, buckets=(bucket,))

    def answer(inputs: list[str]) -> Answer:
        items = [{"index": number, "text": text, "finish_reason": "stop"} for number, text in enumerate(inputs)]
        if len(inputs) > 1:
            items[-1]["finish_reason"] = reason
        return Answer(200, json.dumps({"choices": items, "usage": {"prompt_tokens": 8}}).encode())

    world.inference.answer = answer
    world.line = lambda batch_id, n: b'{"custom_id":"%d","body":{"prompt":"%b %d"}}' % (n, batch_id.encode(), n)
    world.url = "/v1/completions"
    world.publish(ids.new_batch_id(), 0, 8)
    await world.finish()
    assert world.inference.sizes == ({8: 1} if reason == "stop" else {8: 1, 1: 1})
    assert bucket.settled == ([8] if reason == "stop" else [1])


async def test_a_cancelled_batch_leaves_nothing(tmp_path: Path) -> None:
    """Lines in flight get their results, or none if the call is refused; those that wait are not called."""
    for outcome in (None, REFUSED, Answer(500, b"{}")):
        world = Joining(tmp_path, inputs=4)
        world.inference.gate.clear()
        world.inference.answer = lambda _, outcome=outcome: outcome
        batch_id = ids.new_batch_id()
        world.publish(batch_id, 0, 10)
        await until(lambda: world.inference.in_flight == 1, "a call")  # noqa: B023
        world.end(batch_id)
        world.inference.gate.set()
        await world.finish()
        assert world.inference.sizes == {4: 1}
        assert len(world.log.lines) == (4 if outcome is None else 0)


def test_the_bound_follows_what_the_server_takes() -> None:
    """It halves after several refusals in a row, and doubles after many answers, up to the setting."""
    bound = InputBound(8)
    assert [bound.refused(8) for _ in range(REFUSED_MAX)] == [False] * (REFUSED_MAX - 1) + [True]
    assert bound.inputs == 4
    assert not any(bound.refused(size) for size in (8, 2, 1) for _ in range(REFUSED_MAX))
    for _ in range(2 * ANSWERED_MIN):
        bound.answered(bound.inputs)
    assert bound.inputs == 8
    for _ in range(3 * REFUSED_MAX):
        bound.refused(bound.inputs)
    assert bound.inputs == 1
    for _ in range(ANSWERED_MIN):
        bound.answered(1)
    assert bound.inputs == 2
