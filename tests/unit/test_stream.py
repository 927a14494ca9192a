"""How a stage's app is set up."""

import pytest

from tidemill import stream
from tidemill.settings import Settings


@pytest.mark.parametrize("name", ["Größe", "a, b", "100%", "${x}", "{conf}", "{"])
async def test_a_state_folder_may_have_any_name(tmp_path, name):
    """Faust formats the folder that it is given."""
    state = tmp_path / name / "state"
    app = stream.create_app("any", Settings(), kafka="127.0.0.1:1", state=state, tables=True)
    assert app.conf.datadir == state
    assert state in app.conf.tabledir.parents
