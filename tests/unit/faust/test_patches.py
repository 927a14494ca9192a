"""Records survive a rebalance."""

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from mode.utils.queues import FlowControlQueue
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.faust.patches import Flow, LogReset, go_back
from tidemill.faust.stage_app import create_app
from tidemill.kafka.connection import TRANSIENT


async def test_queued_records_survive_a_second_resume():
    """Faust resumes again after the recovery of tables; records that arrived since the first time stay."""
    changelogs = FlowControlQueue(flow_control=(flow := Flow(lambda: changelogs)), clear_on_resume=True)
    queue = FlowControlQueue(flow_control=flow, clear_on_resume=True)
    flow.suspend()
    queue.force_put_nowait("of the partition's last owner")
    flow.resume()
    assert queue.empty()
    queue.force_put_nowait("fetched since")
    changelogs.force_put_nowait("older than the tables")
    flow.resume()
    assert queue.qsize() == 1
    assert changelogs.empty()


async def test_the_flow_of_an_app_without_tables_resumes():
    """It has no queue of changelog records."""
    flow = Flow(lambda: None)
    flow.resume()
    flow.resume()
    assert flow.is_active()


async def test_a_partition_with_room_is_fetched_at_once(tmp_path):
    """Faust sleeps while all partitions are paused; room in one of them ends that."""
    app = create_app("flow", Settings(), kafka="127.0.0.1:9", state=tmp_path)
    consumer = app._new_consumer()
    consumer.resume_flow()
    tp = TP("requests", 0)
    consumer._set_active_tps({tp})
    asked = []

    async def getmany(active_partitions, **_):
        asked.append(set(active_partitions))
        return {}

    consumer._getmany = getmany
    consumer.on_buffer_full(tp)
    waiting = asyncio.create_task(consumer._wait_next_records(1.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    consumer.on_buffer_drop(tp)
    await waiting
    assert asked == [{tp}]
    consumer.on_buffer_full(tp)
    consumer.on_buffer_drop(tp)


async def test_a_consumer_runs_on_the_loop_of_its_app(tmp_path):
    """Its calls are direct ones of either kind; a start without a broker fails, and leaves no task behind."""
    app = create_app("on-loop", Settings(), kafka="127.0.0.1:9", state=tmp_path)
    thread = app._new_consumer()._thread
    assert thread.thread_loop is asyncio.get_running_loop()
    assert await thread.call_thread(lambda offset: offset + 1, 6) == 7
    assert await thread.call_thread(asyncio.sleep, 0, result=7) == 7
    before = asyncio.all_tasks()
    with pytest.raises(KafkaConnectionError):
        await thread.start()
    await until(lambda: asyncio.all_tasks() == before)


class Consumer:
    """Fetches from one log as Faust's does, whose fetches may be dropped after they have moved the place."""

    def __init__(self, *, first=0, committed=None, drops=(), away=(), is_source=True, missing=()):
        self.app = SimpleNamespace(topics=SimpleNamespace(acks_enabled_for=lambda _: is_source))
        self.first, self.committed, self.drops, self.away = first, committed, drops, away
        self.place, self.fetches = first, 0
        self.offsets = [offset for offset in range(first, 20) if offset not in missing]
        self.seeks = []
        coordinator = SimpleNamespace(fetch_committed_offsets=self.committed_offsets)
        self._thread = SimpleNamespace(
            assignment=lambda: {TP("t", 0)},
            seek=self.move,
            _ensure_consumer=lambda: SimpleNamespace(_coordinator=coordinator),
        )

    def move(self, _, offset):
        self.place = offset
        self.seeks.append(offset)

    async def seek(self, tp, offset):
        self.move(tp, offset)

    async def committed_offsets(self, tps):
        # A broker says -1 of a partition in which nothing is committed.
        return {tp: SimpleNamespace(offset=-1 if self.committed is None else self.committed) for tp in tps}

    def stop_flow(self):
        pass

    async def earliest_offsets(self, *tps):
        if self.fetches in self.away:
            raise KafkaConnectionError
        return dict.fromkeys(tps, self.first)

    async def _wait_next_records(self, _):
        fetched = [offset for offset in self.offsets if offset >= self.place][:3]
        self.place, self.fetches = fetched[-1] + 1 if fetched else self.place, self.fetches + 1
        return {
            TP("t", 0): [SimpleNamespace(offset=offset, timestamp=1000.0 + offset) for offset in fetched]
        }, None

    async def getmany(self, timeout):  # noqa: ASYNC109  Faust's signature
        fetched, _ = await self._wait_next_records(timeout)
        if self.fetches not in self.drops:
            for tp, records in fetched.items():
                for record in records:
                    yield tp, record


async def brought(consumer):
    """The offsets that the consumer brings after an assignment."""
    positions = go_back(consumer, TRANSIENT)
    consumer.stop_flow()
    await consumer.seek_to_committed()
    found = []
    for _ in range(20):
        async for _, message in consumer.getmany(timeout=1.0):
            found.append(message.offset)
    assert positions.oldest() is None
    return found


@pytest.mark.parametrize("drops", [(), (1,), (2,), (1, 2, 4)])
@pytest.mark.parametrize("committed", [None, 5])
async def test_skipped_records_are_fetched_again(drops, committed):
    """In order, each once."""
    assert await brought(Consumer(committed=committed, drops=drops)) == [*range(committed or 0, 20)]


async def test_an_unavailable_broker_is_retried():
    """The consumer delivers no record behind the position before that, and needs no later one to notice."""
    assert await brought(Consumer(committed=5, drops=(1,), away=(2, 3))) == [*range(5, 20)]
    assert await brought(Consumer(committed=3, away=(1,), missing={*range(20)} - {5})) == [5]


async def test_removed_records_are_no_gap():
    """The log begins behind them."""
    assert await brought(Consumer(first=10, committed=5, drops=(2,))) == [*range(10, 20)]


@pytest.mark.parametrize("drops", [(), (1,), (2,), (1, 3), (1, 3, 5, 7)])
async def test_a_gap_of_the_log_is_accepted(drops):
    """A fetch from its start proves it, without a seek if none was dropped."""
    consumer = Consumer(drops=drops, missing={1, 2, 3, 7, 9, 12, 13})
    assert await brought(consumer) == [0, 4, 5, 6, 8, 10, 11, *range(14, 20)]
    assert consumer.seeks == [0] or drops


class Removing(Consumer):
    """Drops a record of the first fetch, since its partition is removed at that time."""

    async def getmany(self, timeout):  # noqa: ASYNC109  Faust's signature
        async for tp, message in super().getmany(timeout):
            if (self.fetches, message.offset) != (1, 1):
                yield tp, message


async def test_a_partition_removed_and_added_within_a_fetch_begins_where_it_is_added():
    """The next record of the fetch comes after one that it has dropped meanwhile."""
    consumer, tp, found = Removing(), TP("t", 0), []
    positions = go_back(consumer, TRANSIENT)
    await consumer.seek(tp, 0)
    for _ in range(8):
        async for _, message in consumer.getmany(timeout=1.0):
            found.append(message.offset)
            if found == [0]:
                positions.forget(tp)
                positions.expect(tp, 1)
    assert found == [*range(20)]


async def test_a_topic_created_anew_ends_the_process():
    """Faust has delivered their offsets, and would drop its first records; the next process knows the topic."""
    consumer = Consumer()
    go_back(consumer, TRANSIENT)
    await consumer.seek(TP("t", 0), 0)
    for _ in range(2):
        assert [message async for _, message in consumer.getmany(timeout=1.0)]
    # The client resets itself to the first offset.
    consumer.place, consumer.offsets = 0, [0, 1]
    with pytest.raises(LogReset, match="t/0 has begun anew: offset 0 came after 5"):
        await anext(consumer.getmany(timeout=1.0))


class Asking(Consumer):
    """Waits for the answers of a broker."""

    def __init__(self, **more):
        super().__init__(**more)
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def committed_offsets(self, tps):
        return await self.late(super().committed_offsets(tps))

    async def earliest_offsets(self, *tps):
        return await self.late(super().earliest_offsets(*tps))

    async def late(self, answering):
        """The answer as it was when it was asked for."""
        answer = await answering
        self.asked.set()
        await self.answer.wait()
        return answer


async def seeking_consumer():
    """A consumer whose flow was stopped, and its seek to the committed offset 3, which waits for the broker."""
    consumer = Asking(committed=3)
    go_back(consumer, TRANSIENT)
    consumer.stop_flow()
    seeking = asyncio.create_task(consumer.seek_to_committed())
    await consumer.asked.wait()
    return consumer, seeking


async def offsets(consumer, fetches=1):
    """What it delivers of some fetches."""
    return [message.offset for _ in range(fetches) async for _, message in consumer.getmany(timeout=1.0)]


async def test_nothing_is_delivered_before_a_seek():
    """Faust resumes partitions with tables before it seeks in them, and it has dropped records by then."""
    consumer, seeking = await seeking_consumer()
    # The client begins at the committed offset by itself, or where an earlier fetch has ended.
    consumer.place = 9
    assert await offsets(consumer, 2) == []
    consumer.answer.set()
    assert await seeking == {TP("t", 0): 3}
    assert await offsets(consumer, 8) == [*range(3, 20)]


async def test_a_second_seek_of_an_assignment_repeats_no_record():
    """It moves only what a fetch brought and the app dropped: without later records nothing else would read it."""
    consumer, tp = Consumer(committed=3, drops=(2,)), TP("t", 0)
    positions = go_back(consumer, TRANSIENT)
    consumer.stop_flow()
    await consumer.seek_to_committed()
    assert await offsets(consumer) == [3, 4, 5]
    await consumer.seek_to_committed()
    assert (consumer.place, await offsets(consumer)) == (6, [])
    await consumer.seek_to_committed()
    assert (consumer.place, positions.next_offset(tp)) == (3, 3)


async def test_a_partition_that_comes_back_awaits_its_seek():
    """The process had none in between, and Faust stops no flow at the revocation of such a process."""
    consumer = Consumer(committed=3)
    positions = go_back(consumer, TRANSIENT)
    consumer.stop_flow()
    await consumer.seek_to_committed()
    # Another process has read it up to 9; the client begins there by itself.
    consumer.committed = consumer.place = 9
    positions.clear()
    assert await offsets(consumer, 2) == []
    await consumer.seek_to_committed()
    assert await offsets(consumer) == [9, 10, 11]


async def test_a_second_seek_is_no_new_topic():
    """Two parts of Faust seek after a rebalance, and a fetch may come between the question and the seek."""
    consumer = Asking(committed=3)
    go_back(consumer, TRANSIENT)
    consumer.stop_flow()
    consumer.answer.set()
    await consumer.seek_to_committed()
    consumer.answer.clear()
    consumer.asked.clear()
    seeking = asyncio.create_task(consumer.seek_to_committed())
    await consumer.asked.wait()
    assert await offsets(consumer) == [3, 4, 5]
    consumer.answer.set()
    await seeking
    assert await offsets(consumer, 8) == [*range(6, 20)]


async def test_a_seek_of_an_earlier_generation_is_asked_again():
    """Another process has committed more meanwhile."""
    consumer, seeking = await seeking_consumer()
    consumer.committed = 9
    consumer.stop_flow()
    consumer.answer.set()
    assert await seeking == {TP("t", 0): 9}
    assert await offsets(consumer, 8) == [*range(9, 20)]


async def test_a_late_answer_moves_nothing_of_a_later_generation():
    """A whole rebalance passes while the first offset of a partition is asked for."""
    consumer, tp = Asking(committed=5, drops=(2,)), TP("t", 0)
    consumer.answer.set()
    positions = go_back(consumer, TRANSIENT)
    consumer.stop_flow()
    await consumer.seek_to_committed()
    # The second fetch is dropped, so the third has a gap before it.
    assert await offsets(consumer, 2) == [5, 6, 7]
    positions._begins.clear()
    consumer.answer.clear()
    consumer.asked.clear()
    late = asyncio.create_task(offsets(consumer))
    await consumer.asked.wait()
    consumer.answer.set()
    consumer.stop_flow()
    await consumer.seek_to_committed()
    assert await late == []
    assert (consumer.place, positions.next_offset(tp)) == (5, 5)


class Message:
    """A record that was delivered."""

    acked = False

    def __init__(self, tp, offset):
        self.tp, self.topic, self.offset = tp, tp.topic, offset


@pytest.mark.parametrize("first", [0, 1])
async def test_a_large_gap_of_the_log_costs_nothing(first, tmp_path):
    """An aborted transaction may have millions of records; Faust lists the offset of each."""
    tp, millions = TP("t", 0), 1_000_000
    app = create_app("gap", Settings(), kafka="127.0.0.1:9", state=tmp_path)
    app.topics._acking_topics = {"t"}
    consumer = app._new_consumer()
    tracemalloc.start()
    await consumer._add_gap(tp, first + 1, millions)
    for offset in (first, millions):
        assert consumer.ack(Message(tp, offset))
    assert consumer._new_offset(tp) == millions + 1
    assert consumer._new_offset(tp) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


async def test_a_record_that_waits_for_others_is_late():
    """It counts from the time when it was written, until the consumer has sought back."""
    consumer = Consumer(drops=(1,))
    positions = go_back(consumer, TRANSIENT)
    await consumer.seek(TP("t", 0), 0)
    found, late = [], []
    for _ in range(3):
        found += [message.offset async for _, message in consumer.getmany(timeout=1.0)]
        late.append(positions.oldest())
    assert found == [0, 1, 2]
    assert late == [None, 1003.0, None]


async def test_a_changelog_may_have_gaps():
    """It is compacted."""
    assert await brought(Consumer(committed=5, drops=(1,), is_source=False)) == [*range(8, 20)]
