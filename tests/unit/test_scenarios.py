"""The pattern by which a scenario finds a record on the network."""

import pytest
from chaos.scenarios import record_of

CLAIMS, COMMANDS = "tidemill.claims", "tidemill.commands"


def request(*records):
    """A request to the log: each topic with the key and the value of one record."""
    return b"\x00\x09head".join([b"", *(b"\x00\x11%b\n\x00%b\x10{\n}" % record for record in records)])


@pytest.mark.parametrize(
    ("records", "is_found"),
    [
        ([(COMMANDS, "mine")], True),
        ([(CLAIMS, "other"), (COMMANDS, "mine")], True),
        ([(COMMANDS, "mine"), (CLAIMS, "other")], True),
        ([(CLAIMS, "mine")], False),
        ([(COMMANDS, "other"), (CLAIMS, "mine")], False),
        ([(CLAIMS, "mine"), (COMMANDS, "other")], False),
    ],
)
def test_a_record_is_of_its_own_topic(records, is_found):
    """Batches that are created together share requests: the claim of one goes with the command of another."""
    data = request(*((topic.encode(), key.encode()) for topic, key in records))
    assert (record_of(COMMANDS, "mine").search(data) is not None) == is_found
