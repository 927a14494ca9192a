"""The set-up of a stage's app, a stop during its start, and a revocation."""

import asyncio
from types import SimpleNamespace

import faust
import pytest
from faust.tables.recovery import ServiceStopped
from faust.types import TP
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.security import IDLE_MS
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app, stage_runner
from tidemill.faust.stage_app import create_app
from tidemill.runtime.watchdog import SECONDS_MAX, Symptom


@pytest.mark.parametrize("name", ["Größe", "a, b", "100%", "${x}", "{conf}", "{"])
async def test_a_state_folder_may_have_any_name(tmp_path, name):
    """Faust formats the path."""
    state = tmp_path / name / "state"
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=state, tables=True)
    assert app.conf.datadir == state
    assert state in app.conf.tabledir.parents


async def test_clients_of_an_app_close_unused_connections(tmp_path):
    """As all others do: Faust passes the settings on to both."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    consumer = app._new_consumer()._thread._create_worker_consumer(app.transport)
    assert consumer._client._connections_max_idle_ms == IDLE_MS
    assert consumer._isolation_level == "read_committed"
    await consumer.stop()
    assert app._new_producer()._settings_default()["connections_max_idle_ms"] == IDLE_MS


async def test_a_stop_during_the_start(tmp_path):
    """The app has no consumer yet; the stage still disconnects."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    stopped, drained = [], []

    async def drain(partitions):
        drained.append(partitions)

    class Stage:
        async def stop(self):
            stopped.append(self)

    app.drain = drain
    await stage_runner._stop([app], Stage(), has_crashed=False)
    assert (len(stopped), drained) == (1, [])


@pytest.mark.parametrize("fails", [False, True])
async def test_a_commit_holds_up_no_revocation(tmp_path, monkeypatch, fails):
    """Until the process has left its partitions its writes wait, and it cannot rejoin."""
    monkeypatch.setattr(stage_app, "LAST_COMMIT_SECONDS_MAX", 0.01)
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    app.membership.renew(0.0)
    assert not app.membership.is_valid
    revoked = []

    async def drain(partitions):
        revoked.append(partitions)

    async def commit():
        if fails:
            raise OSError("no coordinator")
        await asyncio.Event().wait()

    async def teardown(_, partitions):
        revoked.append(partitions)

    async def none_under_way():
        pass

    app.drain = drain
    app.consumer = SimpleNamespace(commit=commit, maybe_wait_for_commit_to_finish=none_under_way)
    monkeypatch.setattr(faust.App, "_on_partitions_revoked", teardown)
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await app._on_partitions_revoked({"tp"})
    assert revoked == [{"tp"}, {"tp"}]
    assert app.membership.is_valid


async def test_what_the_drain_acknowledges_is_committed(tmp_path, monkeypatch):
    """Also while the commit of every second is under way: Faust makes no other meanwhile."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    tp, committed, answer = TP("outcomes", 0), [], asyncio.Event()
    consumer = app.consumer
    app.topics._acking_topics = {tp.topic}

    async def commit(offsets):
        await answer.wait()
        # It is still under way when the drain has ended.
        for _ in range(20):
            await asyncio.sleep(0)
        committed.append(offsets)
        return True

    async def flush():
        pass

    async def drain(_):
        consumer._acked[tp].extend(range(10, 500))
        answer.set()

    async def teardown(*_):
        pass

    consumer._thread = SimpleNamespace(assignment=lambda: {tp}, commit=commit)
    app.producer, app.drain = SimpleNamespace(flush=flush), drain
    monkeypatch.setattr(faust.App, "_on_partitions_revoked", teardown)
    consumer._acked[tp].append(9)
    every_second = asyncio.create_task(consumer.commit())
    await asyncio.sleep(0)
    await app._on_partitions_revoked({tp})
    await every_second
    assert committed == [{tp: 10}, {tp: 500}]


async def test_a_process_with_new_partitions_expects_nothing_of_earlier_ones(tmp_path, monkeypatch):
    """Faust stops no flow when it takes the partitions of a process that has none."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")

    async def assign(*_):
        pass

    monkeypatch.setattr(faust.App, "_on_partitions_assigned", assign)
    tp = TP("outcomes", 0)
    assert app.consumer is not None
    app.positions.expect(tp, 3)
    await app._on_partitions_assigned({tp}, 7)
    assert app.positions.next_offset(tp) is None


async def test_a_recovery_without_answers_ends_the_process(tmp_path):
    """Faust would end the recovery for good, and the process would keep its partitions and read nothing."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    recovery = app.tables.recovery
    with pytest.raises(TimeoutError, match="a step of the recovery took more than"):
        await recovery._wait(asyncio.Event().wait(), timeout=0.01)
    recovery._stopped.set()
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.Event().wait(), timeout=WAIT_SECONDS_MAX)


def test_an_assignment_that_lacks_partitions_is_made_again_before_the_watchdog_ends_the_process(tmp_path):
    """A broker that its controller has lost for a moment has no leaders; a fetch without any never returns."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    assert 2 * app.conf.consumer_metadata_max_age_ms <= 1_000 * SECONDS_MAX[Symptom.POLL_STUCK]
