"""Processors as they are run: their own process, a real broker, a real HTTP backend."""

import asyncio
import json

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from support.backend import WAIT_SECONDS, Backend, Behaviour, well
from support.processing import rig
from support.prompts import Cache
from support.waiting import until

from tidemill.processors.partitions.window import LINES_MAX
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.resources.batch import Status

pytestmark = pytest.mark.kafka


@pytest.fixture
def backend():
    """A server that nothing but the test's own model calls."""
    with Backend() as made:
        yield made


@pytest.fixture
async def few(kafka, backend, tmp_path):
    """A model that takes eight calls at one time."""
    async with rig(kafka, backend, tmp_path, max_in_flight=8) as made:
        yield made


@pytest.fixture
async def many(kafka, backend, tmp_path):
    """A model that takes 64 calls at one time."""
    async with rig(kafka, backend, tmp_path) as made:
        yield made


@pytest.fixture
async def grouped(kafka, backend, tmp_path):
    """A model with 16 calls at a time; calls with the same prefix go one after the other."""
    async with rig(kafka, backend, tmp_path, max_in_flight=16, model={"prefix_bytes": 256}) as made:
        yield made


def word(body):
    """What a line of `Rig.batch` says: its batch and its number."""
    batch_id, number = body["messages"][0]["content"].split()
    return batch_id, int(number)


async def test_each_line_has_its_outcome(many, backend):
    """One outcome with the unchanged reply and its token counts, after one call."""
    await many.process().ready()
    batch_id = await many.batch(300)
    lines = await many.collect(batch_id, 300)
    assert [line["custom_id"] for line in lines] == [f"r-{n}" for n in range(300)]
    assert all(line["response"]["body"]["choices"][0]["message"]["content"].startswith("echo") for line in lines)
    assert {(mark.failed, mark.usage, mark.attempts) for mark in many.marks.values()} == {(False, (2, 0, 3, 0), 1)}
    assert set(many.times.values()) == {1}
    assert (backend.calls, backend.repeats) == (300, 0)
    assert backend.in_flight_max <= 64


async def test_lines_with_a_common_prefix_are_called_together(grouped, backend):
    """Forty mixed prompts, a server that caches five: most lines hit the cache; in their order none would."""
    backend.rule = cache = Cache(prompts_max=5, prefill_seconds=0.02, answer_seconds=0.02)
    backend.hold()
    await grouped.process().ready()
    batch_id = ids.new_batch_id()
    for first in range(0, 600, 40):
        texts = []
        for number in range(first, first + 40):
            system = {"role": "system", "content": f"Prompt {7 * number % 40:02}. " + 300 * "x"}
            body = {"model": grouped.model, "messages": [system, {"role": "user", "content": str(number)}]}
            texts.append(
                json.dumps({"custom_id": f"r-{number}", "method": "POST", "url": "", "body": body}) + "\n"
            )
        await grouped.send("".join(texts).encode(), grouped.head(batch_id, first), key=f"{batch_id}/0")
    await until(lambda: backend.in_flight >= 8, "the first calls")
    backend.release()
    lines = await grouped.collect(batch_id, 600)
    assert [line["custom_id"] for line in lines] == [f"r-{n}" for n in range(600)]
    assert (cache.calls, backend.repeats) == (600, 0)
    assert cache.hits >= 300


async def test_processes_share_the_calls(few, backend):
    """Each makes its part of the calls that the model may have in flight."""
    backend.hold()
    for process in [few.process(), few.process()]:
        await process.ready()
    batch_id = await few.batch(2_000)
    await until(lambda: backend.in_flight >= 8, "the calls of both")
    assert backend.in_flight_max == 8
    backend.release()
    await few.collect(batch_id, 2_000)
    assert (backend.in_flight_max, backend.repeats) == (8, 0)


async def test_lines_that_their_server_always_rejects_end(many, backend):
    """With the server's error; the other lines and a new batch complete long before."""
    statuses = [401, 402, 403, 404, 409, 413, 422, 424, 429, 500, 502, 503, 504]
    faults = {13 * number: Behaviour(status=status) for number, status in enumerate(statuses)}
    faults |= {170: Behaviour(cut=True), 180: Behaviour(body=b""), 199: Behaviour(body=b"<html>")}

    def rule(body, nth):
        del nth
        said = body["messages"][0]["content"].split()
        return faults.get(int(said[1]), Behaviour()) if len(said) == 2 else Behaviour()

    backend.rule = rule
    await many.process().ready()
    batch_id = await many.batch(200)
    await many.collect(batch_id, 200 - len(faults))
    backend.rule = lambda body, nth: rule(body, nth) if batch_id in str(body) else Behaviour()
    fresh = await many.batch(50)
    await many.collect(fresh, 50)
    lines = await many.collect(batch_id, 200)
    assert {n for n in range(200) if many.marks[batch_id, n].failed} == set(faults)
    assert [lines[13 * number]["response"]["status_code"] for number in range(len(statuses))] == statuses
    assert lines[0]["response"]["body"]["error"]["message"] == "The test wants 401."
    assert [many.marks[batch_id, 13 * number].attempts for number in (5, 6)] == [1, 1]
    assert all(2 <= many.marks[batch_id, 13 * number].attempts <= 4 for number in range(4))
    assert all(10 <= many.marks[batch_id, n].attempts <= 14 for n in faults if n >= 7 * 13)


async def test_transient_faults_are_retried(many, backend):
    """Refusals, errors, closed connections and truncated replies; a 400 is an answer."""
    faults = {
        0: Behaviour(status=429, headers={"retry-after": "0"}),
        1: Behaviour(status=500),
        2: Behaviour(cut=True),
        3: Behaviour(body=b'{"id":"x", "choices":['),
        4: Behaviour(status=503),
        5: Behaviour(body=b'"a string"'),
        6: Behaviour(status=429, headers={"retry-after": "1"}),
    }

    def rule(body, nth):
        number = word(body)[1]
        if number == 7:
            return Behaviour(status=400)
        return faults.get(number, Behaviour()) if nth == 1 else Behaviour()

    backend.rule = rule
    await many.process().ready()
    batch_id = await many.batch(10)
    lines = await many.collect(batch_id, 10)
    assert [line["response"]["status_code"] for line in lines] == [200] * 7 + [400] + [200] * 2
    assert [many.marks[batch_id, n].attempts for n in range(10)] == [2] * 7 + [1] * 3
    assert [many.marks[batch_id, n].failed for n in range(10)] == [False] * 7 + [True] + [False] * 2
    assert lines[7]["response"]["body"]["error"]["message"] == "The test wants 400."


async def test_a_kill_repeats_no_more_than_the_calls_and_results_may_be(few, backend):
    """All lines have outcomes after a `kill -9` and a restart."""
    held = few.process()
    await held.ready()
    backend.rule = lambda body, _: Behaviour(latency_seconds=0.02 if word(body)[1] < 150 else 0.2)
    batch_id = await few.batch(300)
    await few.collect(batch_id, 100)
    held.kill()
    backend.rule = well
    await few.process().ready()
    lines = await few.collect(batch_id, 300)
    assert len({line["custom_id"] for line in lines}) == 300
    assert backend.repeats <= 8 + 2


async def test_a_stop_repeats_no_call(few, backend):
    """After SIGTERM the calls in flight end, their outcomes arrive, and the next process calls the rest."""
    first = few.process()
    await first.ready()
    backend.rule = lambda *_: Behaviour(latency_seconds=0.05)
    batch_id = await few.batch(300)
    await few.collect(batch_id, 50)
    assert await asyncio.to_thread(first.terminate) == 0
    assert backend.calls < 300
    await few.process().ready()
    await few.collect(batch_id, 300)
    assert (backend.calls, backend.repeats) == (300, 0)


async def test_a_stop_waits_for_long_calls(kafka, backend, tmp_path):
    """A process that joins meanwhile takes partitions over; the one that stops begins no other call."""
    async with rig(kafka, backend, tmp_path, max_in_flight=8, environ={"TIDEMILL_STOP_SECONDS": "60"}) as few:
        first = await few.process().ready()
        backend.rule = lambda *_: Behaviour(latency_seconds=12)
        batch_id = await few.batch(24, pack=1)
        await until(lambda: backend.in_flight == 8, "calls in flight")
        ending = asyncio.create_task(asyncio.to_thread(first.terminate))
        backend.rule = lambda *_: Behaviour(latency_seconds=0.1)
        await few.process().ready()
        assert await ending == 0
        await few.collect(batch_id, 24)
        assert (backend.calls, backend.repeats) == (24, 0)
        assert backend.in_flight_max == 8


async def test_a_rebalance_repeats_no_call(few, backend):
    """A second process takes over partitions without a second call for any line."""
    await few.process().ready()
    backend.rule = lambda *_: Behaviour(latency_seconds=0.1)
    batch_id = await few.batch(1200)
    await few.collect(batch_id, 50)
    await few.process().ready()
    await few.collect(batch_id, 1200)
    assert (backend.calls, backend.repeats) == (1200, 0)
    assert backend.in_flight_max == 8


async def test_a_rebalance_neither_waits_for_long_calls_nor_repeats_them(few, backend):
    """Other partitions go on at once, and those whose lines are in flight once their calls have ended."""
    called = set()
    pause = 0.5

    def slow_at_first(body, _):
        called.add(number := word(body)[1])
        return Behaviour(latency_seconds=WAIT_SECONDS if number < 4 else pause)

    await few.process().ready()
    backend.rule = slow_at_first
    # The four long calls are of one partition; all partitions have many of the other lines. However the two
    # processes share the partitions, and half of the calls in flight each, one of them can go on.
    batch_id = await few.batch(1_000, pack=1, same_key=4)
    # Which partition comes first is open.
    await until(lambda: len(called) > 40 and called.issuperset(range(4)), "the long calls among others")
    await few.process().ready()
    pause = 0.01
    assert backend.in_flight >= 4
    calls = backend.calls
    await until(lambda: backend.calls > calls + 20, "further calls")
    assert backend.in_flight >= 4
    backend.hurry()
    await few.collect(batch_id, 1_000)
    assert (backend.calls, backend.repeats) == (1_000, 0)
    assert backend.in_flight_max == 8


async def test_a_cancelled_batch_is_called_no_more(few, backend):
    """Waiting lines are dropped, calls in flight end, and another batch continues."""
    await few.process().ready()
    # They do not end together: as long as the batch is called, some are in flight.
    backend.rule = lambda body, _: Behaviour(latency_seconds=0.5 + word(body)[1] % 8 / 16)
    batch_id = await few.batch(400)
    await until(lambda: backend.in_flight == 8, "calls in flight")
    await few.say(batch_id, Status.CANCELLING)
    await until(lambda: not backend.in_flight, "the end of the calls in flight")
    calls = backend.calls
    # Without the news all of them take half a minute.
    assert calls < 400 / 2
    await few.collect(await few.batch(40), 40)
    assert (backend.calls, backend.repeats) == (calls + 40, 0)


async def test_a_line_past_its_deadline_is_not_called(few, backend):
    """The owner of the batch writes its error line."""
    await few.process().ready()
    late = await few.batch(20, seconds=-1)
    batch_id = await few.batch(20)
    await few.collect(batch_id, 20)
    assert not any(place[0] == late for place in few.lines)
    assert backend.calls == 20


async def test_copies_of_a_line_are_called_once(few, backend):
    """Ingest may publish them after a crash, while the first is waiting, in flight or completed."""
    await few.process().ready()
    batch_id = ids.new_batch_id()
    for _ in range(3):
        for number in range(20):
            line = few.line(f"{batch_id} {number}", f"r-{number}")
            await few.send(line, few.head(batch_id, number), key=batch_id)
    await few.collect(batch_id, 20)
    marker = ids.new_batch_id()
    await few.send(few.line(f"{marker} 0", "m"), few.head(marker, 0), key=batch_id)
    await few.collect(marker, 1)
    assert backend.calls == 21


async def test_large_lines_travel_by_reference(few, backend):
    """An input line in the store, and a reply of 2 MiB that is too large for a record."""
    reply = json.dumps({"choices": ["x" * (2 << 20)], "usage": {"prompt_tokens": 1}}).encode()
    backend.rule = lambda *_: Behaviour(body=reply)
    await few.process().ready()
    batch_id = ids.new_batch_id()
    line = few.line(f"{batch_id} 0", "large")
    stored = few.store / "files" / "input"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"before" + line + b"after")
    ref = codec.LineRef("files/input", len("before"), len(line))
    await few.send(b"", few.head(batch_id, 0, ref=ref), key=batch_id)
    (outcome,) = await few.collect(batch_id, 1)
    assert outcome["custom_id"] == "large"
    assert outcome["response"]["body"] == json.loads(reply)
    assert few.marks[batch_id, 0].usage == (1, 0, 0, 0)
    assert [ref.length for ref in few.refs] == [few.marks[batch_id, 0].size]


async def test_unreadable_records_become_dead_letters(few, kafka):
    """A record without a readable head goes to the dead letters; a line that is not JSON gets an error line."""
    await few.process().ready()
    await few.send(b"whatever\n", [("tidemill-batch", b"../../etc")], key="k")
    batch_id = ids.new_batch_id()
    await few.send(b"no json\n" + few.line(f"{batch_id} 1", "r-1"), few.head(batch_id, 0), key="k")
    lines = await few.collect(batch_id, 2)
    assert lines[0]["error"]["code"] == "invalid_line"
    assert lines[1]["response"]["status_code"] == 200
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(topics.DEAD.name, 0)])
    found = []
    source = topics.requests(few.model).name

    async def buried():
        for records in (await consumer.getmany(timeout_ms=50)).values():
            found.extend(record for record in records if record.key.decode().startswith(source))
        return found

    try:
        await until(buried, "a dead letter")
    finally:
        await consumer.stop()
    assert found[0].value == b"whatever\n"
    assert dict(found[0].headers)["tidemill-dead-stage"] == b"processors"


async def test_a_damaged_record_fails_its_lines_at_once(few, backend):
    """Before the deadline; the partition continues."""
    await few.process().ready()
    batch_id = ids.new_batch_id()
    damaged = [(name, b"x" if name == "tidemill-deadline" else text) for name, text in few.head(batch_id, 0)]
    await few.send(few.line("a", "r-0") + few.line("b", "r-1"), damaged, key="k")
    await few.send(few.line(f"{batch_id} 2", "r-2"), few.head(batch_id, 2), key="k")
    await few.send(b"", few.head(batch_id, 3), key="k")
    lines = await few.collect(batch_id, 3)
    assert [line["custom_id"] for line in lines] == ["r-0", "r-1", "r-2"]
    assert [line["error"] and line["error"]["code"] for line in lines] == ["unreadable_request"] * 2 + [None]
    assert backend.calls == 1


async def test_a_small_batch_passes_a_large_one(few, backend):
    """It completes while nearly all of another project's large batch, published earlier, is left."""
    await few.process().ready()
    backend.rule = lambda *_: Behaviour(latency_seconds=0.05)
    large = await few.batch(3_000, pack=100, project="large")
    await few.collect(large, 50)
    small = await few.batch(10, pack=10, project="small", express=True)
    await few.collect(small, 10)
    assert sum(1 for batch_id, _ in few.lines if batch_id == large) < 2_000


async def test_a_full_window_loses_nothing(many, backend):
    """A partition has more lines than its window: fetching pauses, and records fetched before still arrive."""
    batch_id = ids.new_batch_id()
    pack, records = 100, 180
    for first in range(0, pack * records, pack):
        value = b"".join(many.line(f"{batch_id} {n}", f"r-{n}") for n in range(first, first + pack))
        await many.send(value, many.head(batch_id, first), key="one")
    assert pack * records > LINES_MAX
    await many.process().ready()
    await many.collect(batch_id, pack * records)
    assert (backend.calls, backend.repeats) == (pack * records, 0)
