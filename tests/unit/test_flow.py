"""Records that wait for an agent stay where they are when flow is resumed a second time."""

from mode.utils.queues import FlowControlQueue

from tidemill.flow import Flow


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
