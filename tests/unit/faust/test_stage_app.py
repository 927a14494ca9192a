"""The set-up of a stage's app, a stop during its start, and a revocation."""

import asyncio
from types import SimpleNamespace

import faust
import pytest
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

    app.drain, app.consumer = drain, SimpleNamespace(commit=commit)
    monkeypatch.setattr(faust.App, "_on_partitions_revoked", teardown)
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await app._on_partitions_revoked({"tp"})
    assert revoked == [{"tp"}, {"tp"}]
    assert app.membership.is_valid


def test_an_assignment_that_lacks_partitions_is_made_again_before_the_watchdog_ends_the_process(tmp_path):
    """A broker that its controller has lost for a moment has no leaders; a fetch without any never returns."""
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=tmp_path / "state")
    assert 2 * app.conf.consumer_metadata_max_age_ms <= 1_000 * SECONDS_MAX[Symptom.POLL_STUCK]
