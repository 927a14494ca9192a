"""The identities of topics, from brokers of any version."""

from types import SimpleNamespace

import pytest

from tidemill.kafka import connection
from tidemill.kafka.connection import LogUnavailable, topic_identities
from tidemill.schemas import ids

NAME = "tidemill.files"
ID = "8f0c1a52-3f2b-4f17-9f4b-0e53a1c3b7aa"


class Admin:
    """A client whose one broker gives this id to the topic; without one it is silent."""

    topic_id: str | None = ID

    def __init__(self, **_):
        self._client = SimpleNamespace(get_random_node=lambda: 1)

    async def start(self):
        """Connect."""

    async def close(self):
        """Disconnect."""

    async def _send_request_to_node(self, *_):
        if self.topic_id is None:
            raise TimeoutError
        return SimpleNamespace(cluster_id="c", topics=[(0, NAME, self.topic_id, False, [], 0, {})])


@pytest.fixture(autouse=True)
def admin(monkeypatch):
    """The client of the broker."""
    monkeypatch.setattr(connection, "AIOKafkaAdminClient", Admin)
    return Admin


async def test_a_topic_without_an_id_has_none(monkeypatch):
    """Brokers with an old `inter.broker.protocol.version` send the nil id, and others after an upgrade."""
    later = (await topic_identities("broker", [NAME]))[NAME]
    monkeypatch.setattr(Admin, "topic_id", ids.NIL)
    before = (await topic_identities("broker", [NAME]))[NAME]
    assert (before, later) == ("c/", f"c/{ID}")


def test_a_nil_id_that_was_stored_is_none():
    """An older process has taken it for one."""
    assert ids.is_same_topic(f"c/{ids.NIL}", f"c/{ID}")
    assert ids.is_same_topic(f"c/{ID}", f"c/{ids.NIL}")
    assert not ids.is_same_topic(f"c/{ids.NIL}", f"d/{ID}")


async def test_a_silent_broker_is_an_unavailable_log(monkeypatch):
    """The client raises a bare `TimeoutError`, which no caller expects."""
    monkeypatch.setattr(Admin, "topic_id", None)
    with pytest.raises(LogUnavailable, match="TimeoutError"):
        await topic_identities("broker", [NAME])
