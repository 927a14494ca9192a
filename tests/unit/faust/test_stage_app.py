"""The set-up of a stage's app, and a stop during its start."""

import pytest

from tidemill.configuration.settings import Settings
from tidemill.faust import stage_runner
from tidemill.faust.stage_app import create_app


@pytest.mark.parametrize("name", ["Größe", "a, b", "100%", "${x}", "{conf}", "{"])
async def test_a_state_folder_may_have_any_name(tmp_path, name):
    """Faust formats the path."""
    state = tmp_path / name / "state"
    app = create_app("any", Settings(), kafka="127.0.0.1:1", state=state, tables=True)
    assert app.conf.datadir == state
    assert state in app.conf.tabledir.parents


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
