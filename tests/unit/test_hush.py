"""A log that repeats itself is thinned, and says by how much."""

import logging
import sys

import pytest

from tidemill.hush import MESSAGES_MAX, Hush, _Only


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def hush(now):
    return Hush(30.0, lambda: now[0])


def record(text="node %d away", *args, level=logging.ERROR, exc_info=None):
    return logging.LogRecord("aiokafka.conn", level, __file__, 1, text, args, exc_info)


def test_the_same_is_said_once_in_a_while(hush, now):
    """Then with the number of what was left out; other arguments do not make another message."""
    assert [hush.filter(record("node %d away", number)) for number in range(10)] == [True] + [False] * 9
    now[0] = 30.0
    last = record("node %d away", 7)
    assert hush.filter(last)
    assert last.getMessage() == "node 7 away (and 9 like it in 30 s)"


def test_another_message_is_said_at_once(hush):
    """Nor does another level count as the same."""
    assert hush.filter(record("a"))
    assert hush.filter(record("b"))
    assert hush.filter(record("a", level=logging.WARNING))


def test_percent_signs_survive(hush, now):
    """A message that holds one is not taken for a template."""
    hush.filter(record("%s full", "100%"))
    hush.filter(record("%s full", "100%"))
    now[0] = 31.0
    last = record("%s full", "100%")
    assert hush.filter(last)
    assert last.getMessage().startswith("100% full (and 1")


def test_a_traceback_is_never_left_out(hush):
    """It may be the one that counts."""
    try:
        int("x")
    except ValueError:
        info = sys.exc_info()
    assert [hush.filter(record("x", exc_info=info)) for _ in range(3)] == [True] * 3


def test_memory_is_bounded(hush):
    """Even where every message is another one."""
    for number in range(3 * MESSAGES_MAX):
        hush.filter(record(f"message {number}"))
    assert len(hush._said) <= MESSAGES_MAX


def test_what_clients_do_wrong_is_said_once_in_a_while(hush):
    """A flood of bad requests does not push everything else out of the log; our own errors are all said."""
    only = _Only(hush)
    bad = [logging.LogRecord("uvicorn.error", logging.WARNING, __file__, 1, "bad", (), None) for _ in range(3)]
    own = [logging.LogRecord("tidemill.api.exchange", logging.ERROR, __file__, 1, "x", (), None) for _ in range(3)]
    assert [only.filter(one) for one in bad] == [True, False, False]
    assert all(only.filter(one) for one in own)
