"""Records that wait for an agent stay where they are when flow is resumed a second time."""

import asyncio

from faust.types import TP
from mode.utils.queues import FlowControlQueue

from tidemill import stream
from tidemill.flow import Flow
from tidemill.settings import Settings


async def test_what_waits_is_not_thrown_away():
    """Faust resumes again when tables are recovered; what has come since the first time is still there."""
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


async def test_an_app_without_tables_has_no_changelogs():
    """Flow is resumed all the same."""
    flow = Flow(lambda: None)
    flow.resume()
    flow.resume()
    assert flow.is_active()


async def test_a_partition_with_room_is_fetched_from_at_once(tmp_path):
    """Faust sleeps when every partition is held back; one that has room again ends that."""
    app = stream.create_app("flow", Settings(), kafka="127.0.0.1:9", state=tmp_path)
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
    consumer._thread.thread_loop.close()
    assert asked == [{tp}]
    consumer.on_buffer_full(tp)
    consumer.on_buffer_drop(tp)
