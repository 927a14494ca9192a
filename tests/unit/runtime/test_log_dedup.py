"""A log that repeats itself is thinned, and says by how much."""

import logging

import pytest

from tidemill import metrics
from tidemill.runtime.log_dedup import LINES_MAX, MESSAGES_MAX, LogDedup, _Split


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def hush(now):
    return LogDedup(1, 30.0, lambda: now[0])


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


def test_tracebacks_are_left_out_late(hush):
    """One may be the one that counts; those of another kind are not the same."""
    value, key = (ValueError, ValueError("x"), None), (KeyError, KeyError("x"), None)
    said = [hush.filter(record("x", exc_info=value)) for _ in range(LINES_MAX + 5)]
    assert said == [True] * LINES_MAX + [False] * 5
    assert hush.filter(record("x", exc_info=key))


def test_what_is_left_out_is_counted(hush):
    """Where it ends, no line would tell."""
    before = metrics.LOG_LINES_SUPPRESSED._value.get()
    for _ in range(10):
        hush.filter(record())
    assert metrics.LOG_LINES_SUPPRESSED._value.get() - before == 9


def test_memory_is_bounded(hush):
    """Even where every message is another one."""
    for number in range(3 * MESSAGES_MAX):
        hush.filter(record(f"message {number}"))
    assert len(hush._seen) <= MESSAGES_MAX


def test_what_clients_do_wrong_is_said_once_in_a_while(now):
    """A flood of bad requests does not push all else out of the log, nor one of requests that fail for us."""
    split = _Split(lambda: now[0])

    def said(name: str, text: str) -> int:
        lines = [logging.LogRecord(name, logging.WARNING, __file__, 1, text, (n,), None) for n in range(10_000)]
        return sum(split.filter(line) for line in lines)

    assert said("uvicorn.error", "bad %d") == 1
    assert said("tidemill.api.error_handlers", "no log for %d") == LINES_MAX
    assert said("tidemill.api.error_handlers", "no view for %d") == LINES_MAX
    now[0] = 31.0
    assert said("tidemill.api.error_handlers", "no log for %d") == LINES_MAX
