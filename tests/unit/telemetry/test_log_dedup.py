"""Repeated log lines are suppressed and counted."""

import logging

import pytest
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError

from tidemill import metrics
from tidemill.telemetry.log_dedup import LINES_MAX, MESSAGES_MAX, START_SECONDS, LogDedup, StartFilter


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def dedup(now):
    return LogDedup(lambda: now[0])


def record(text="node %d away", *args, level=logging.ERROR, exc_info=None):
    return logging.LogRecord("aiokafka.conn", level, __file__, 1, text, args, exc_info)


def test_a_repeated_message_passes_once_per_period(dedup, now):
    """With the number of suppressed lines; other arguments do not make another message."""
    assert [dedup.filter(record("node %d away", number)) for number in range(10)] == [True] + [False] * 9
    now[0] = 30.0
    last = record("node %d away", 7)
    assert dedup.filter(last)
    assert last.getMessage() == "node 7 away (and 9 like it in 30 s)"


def test_a_broker_that_starts_has_no_coordinator_yet(now):
    """That is an error only of one that has had its time."""
    start, error = StartFilter(lambda: now[0]), GroupCoordinatorNotAvailableError()
    assert not start.filter(record("Group Coordinator Request failed: %s", error))
    assert start.filter(record("Group Coordinator Request failed: %s", NotCoordinatorForGroupError()))
    now[0] = START_SECONDS
    assert start.filter(record("Group Coordinator Request failed: %s", error))


def test_another_message_passes_at_once(dedup):
    """So does another level."""
    assert dedup.filter(record("a"))
    assert dedup.filter(record("b"))
    assert dedup.filter(record("a", level=logging.WARNING))


def test_percent_signs_survive(dedup, now):
    """A message that contains one is not expanded."""
    dedup.filter(record("%s full", "100%"))
    dedup.filter(record("%s full", "100%"))
    now[0] = 31.0
    last = record("%s full", "100%")
    assert dedup.filter(last)
    assert last.getMessage().startswith("100% full (and 1")


def test_tracebacks_are_suppressed_late(dedup):
    """One may be the important one; other types of exceptions are other messages."""
    value, key = (ValueError, ValueError("x"), None), (KeyError, KeyError("x"), None)
    said = [dedup.filter(record("x", exc_info=value)) for _ in range(LINES_MAX + 5)]
    assert said == [True] * LINES_MAX + [False] * 5
    assert dedup.filter(record("x", exc_info=key))


def test_suppressed_lines_are_counted(dedup):
    """In a metric, since a next line may never come."""
    before = metrics.LOG_LINES_SUPPRESSED._value.get()
    for _ in range(10):
        dedup.filter(record())
    assert metrics.LOG_LINES_SUPPRESSED._value.get() - before == 9


def test_memory_is_bounded(dedup):
    """Even if all messages differ."""
    for number in range(3 * MESSAGES_MAX):
        dedup.filter(record(f"message {number}"))
    assert len(dedup._seen) <= MESSAGES_MAX


def test_mistakes_of_clients_are_logged_once_per_period(now):
    """A flood of bad requests, or of failing ones, does not crowd out other lines."""
    split = LogDedup(lambda: now[0])

    def said(name: str, text: str) -> int:
        lines = [logging.LogRecord(name, logging.WARNING, __file__, 1, text, (n,), None) for n in range(10_000)]
        return sum(split.filter(line) for line in lines)

    assert said("uvicorn.error", "bad %d") == 1
    assert said("tidemill.api.error_handlers", "no log for %d") == LINES_MAX
    assert said("tidemill.api.error_handlers", "no view for %d") == LINES_MAX
    now[0] = 31.0
    assert said("tidemill.api.error_handlers", "no log for %d") == LINES_MAX
