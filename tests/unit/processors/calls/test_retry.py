"""What follows a failed call, and how failures are counted against lines."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual import failed

from tidemill.processors import failures
from tidemill.processors.calls import retry
from tidemill.processors.calls.retry import Expire, GiveUp, RetryAt
from tidemill.processors.failures import CallFailure, Evidence, FailureKind, Fault, History, fault_of

NOW = 1_000_000.0
ANSWERED = Evidence(others_answered=True)
ALONE = Evidence()
chances = st.floats(0, 1, exclude_max=True)
attempts = st.integers(1, 100_000)
faults = st.sampled_from([Fault.SERVER, Fault.ACCESS_OR_LINE, Fault.SERVER_OR_LINE])
histories = st.builds(
    History,
    since=st.floats(0, 1e6).map(lambda seconds: NOW - seconds),
    failures=st.integers(0, 1000),
    counted=st.integers(0, 1000),
    refusals=st.integers(0, 1000),
)
OPEN = {"attempt": 1, "deadline": 1e12, "chance": 0.5}


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        (Fault.LINE, (400, 406, 413, 422, 451, 499)),
        (Fault.SERVER_OR_LINE, (408, 409, 424, 425, 429, 500, 502, 503, 504, 529)),
        (Fault.ACCESS_OR_LINE, (401, 402, 403, 404, 302)),
    ],
)
def test_faults_by_status(fault: Fault, statuses: tuple[int, ...]) -> None:
    """Only a 4xx about the line is certainly the line's fault."""
    assert {fault_of(status) for status in statuses} == {fault}
    assert {CallFailure(FailureKind.STATUS, "", status).fault for status in statuses} == {fault}
    assert {CallFailure(FailureKind.ERROR_IN_REPLY, "", status).fault for status in statuses} == {fault}


@pytest.mark.parametrize("kind", FailureKind)
def test_faults_by_kind_of_failure(kind: FailureKind) -> None:
    """A call that no server saw is never the line's fault; one that a retry may mend is not yet."""
    fault = CallFailure(kind, "", 200 if kind is FailureKind.UNSUPPORTED_REPLY else None).fault
    unseen = {FailureKind.CONNECT, FailureKind.STORE, FailureKind.KEY}
    passing = {FailureKind.TIMEOUT, FailureKind.READ, FailureKind.INVALID_REPLY, FailureKind.INTERNAL}
    passing.add(FailureKind.BROKEN_OFF)
    assert (fault is Fault.SERVER) == (kind in unseen)
    assert (fault is Fault.SERVER_OR_LINE) == (kind in passing)


@given(faults, histories, attempts, chances)
def test_no_line_fails_while_its_server_answers_no_other_line(
    fault: Fault, history: History, attempt: int, chance: float
) -> None:
    """However often and for how long it has failed, and whatever the server says."""
    case = {**OPEN, "attempt": attempt, "chance": chance}
    failure = failed(fault, at=NOW)
    assert isinstance(retry.decide(failure, ALONE, history, **case), RetryAt)
    assert retry.blamed(failure, ALONE) is (Fault.ACCESS if fault is Fault.ACCESS_OR_LINE else Fault.SERVER)


def test_answers_that_a_server_breaks_off_are_not_bought_until_the_deadline() -> None:
    """Each costs tokens, and no other line need be answered for them to count."""
    history, at, actions = History(NOW), NOW, []
    while not actions or isinstance(actions[-1], RetryAt):
        broken_off = CallFailure(FailureKind.BROKEN_OFF, "", 200, at=at)
        actions.append(retry.decide(broken_off, ALONE, history, **OPEN | {"attempt": len(actions) + 1}))
        at = max(at, getattr(actions[-1], "at", at))
    assert (len(actions), actions[-1]) == (retry.TRIES_MAX, GiveUp())
    assert at - NOW >= retry.SPREAD_SECONDS_MIN


def test_a_failure_shared_with_other_lines_is_not_the_failure_of_one() -> None:
    """Two failures of its own end a line that its server refuses; failures in shared calls do not count."""
    history = History(NOW)
    refused = failed(Fault.ACCESS_OR_LINE, at=NOW)
    retry.decide(msgspec.structs.replace(refused, is_shared=True), ALONE, history, **OPEN)
    assert not history.is_clear
    first, second = (retry.decide(refused, ANSWERED, history, **OPEN) for _ in range(2))
    assert isinstance(first, RetryAt)
    assert isinstance(second, GiveUp)


@given(faults, histories, attempts, chances)
def test_a_line_fails_when_enough_failures_count(
    fault: Fault, history: History, attempt: int, chance: float
) -> None:
    """Two refusals, or ten failures over a minute; a line that is certainly at fault needs neither."""
    case = {**OPEN, "attempt": attempt, "chance": chance}
    failure = failed(fault, at=NOW)
    action = retry.decide(failure, ANSWERED, history, **case)
    is_over = history.refusals >= 2 or (history.counted >= 10 and NOW - history.since >= 60)
    counts = fault is not Fault.SERVER
    assert isinstance(action, GiveUp) == (is_over and counts)
    assert retry.blamed(failure, ANSWERED) is (Fault.LINE if counts else Fault.SERVER)
    assert retry.decide(failed(Fault.LINE, at=NOW), ALONE, history, **OPEN) == GiveUp()


seen = st.sampled_from([Fault.ACCESS_OR_LINE, Fault.SERVER_OR_LINE])


@given(st.lists(st.tuples(seen, st.booleans()), min_size=1, max_size=30))
def test_failures_that_count(failures: list[tuple[Fault, bool]]) -> None:
    """And the failure before the first that counts: others were answered after it."""
    history = History(NOW)
    for fault, counts in failures:
        retry.decide(failed(fault, at=NOW), ANSWERED if counts else ALONE, history, **OPEN)
    counted = [number for number, (_, counts) in enumerate(failures) if counts]
    assert history.counted == len(counted) + bool(counted and counted[0])
    assert (history.refusals > 0) == ((Fault.ACCESS_OR_LINE, True) in failures)
    assert history.failures == len(failures)


def test_a_call_that_reached_no_server_does_not_count() -> None:
    """Nor does the refusal of a server that is full, if it is not refused for ever."""
    history = History(NOW)
    retry.decide(failed(Fault.SERVER, at=NOW), ANSWERED, history, **OPEN)
    assert (history.failures, history.is_clear) == (0, True)
    for number in range(10):
        many = Evidence(others_answered=True, refuses_many=True)
        retry.decide(failed(is_full=True, at=NOW), many, history, **OPEN)
        assert history.is_clear == (number < failures.UNCERTAIN_OVERLOADS_MAX)
    assert history.counted == 0


@given(attempts, chances, st.sampled_from([(Fault.SERVER, 5.0), (Fault.SERVER_OR_LINE, 60.0)]))
def test_jitter_is_full_and_bounded(attempt: int, chance: float, bound: tuple[Fault, float]) -> None:
    """The wait is a random part of a bound that doubles up to a minute, or 5 s if no server was reached."""
    fault, longest = bound
    case = {**OPEN, "attempt": attempt, "chance": chance}
    action = retry.decide(failed(fault, at=NOW), ALONE, History(NOW), **case)
    assert action == RetryAt(NOW + chance * min(longest, 0.5 * 2 ** min(attempt - 1, 100)))


@given(chances)
def test_ten_tries_fit_into_little_more_than_a_minute(chance: float) -> None:
    """The last one comes after the end of the minute."""
    history, now = History(NOW), NOW
    for attempt in range(1, 11):
        case = {**OPEN, "attempt": attempt, "chance": chance}
        action = retry.decide(failed(at=now), ANSWERED, history, **case)
        if isinstance(action, RetryAt):
            now = action.at
    assert isinstance(action, GiveUp)
    assert 60 <= now - NOW <= 90


@given(faults, histories, chances, st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), st.booleans())
def test_no_retry_at_or_after_the_deadline(
    fault: Fault, history: History, chance: float, wait: tuple[float, float], counts: bool
) -> None:
    """If the wait would reach the deadline, the line expires instead."""
    left, retry_after = wait
    case = {**OPEN, "deadline": NOW + left, "chance": chance}
    failure = failed(fault, at=NOW, retry_after=retry_after)
    match retry.decide(failure, ANSWERED if counts else ALONE, history, **case):
        case RetryAt(at):
            assert NOW + retry_after <= at < NOW + left
        case Expire():
            assert True
        case GiveUp():
            assert counts


@given(faults, chances)
def test_a_line_goes_to_another_server_at_once(fault: Fault, chance: float) -> None:
    """If its own server answers no other line, whatever wait that server asks for."""
    failure = failed(fault, at=NOW, retry_after=60.0)
    action = retry.decide(failure, Evidence(other_is_well=True), History(NOW), **{**OPEN, "chance": chance})
    assert action == RetryAt(NOW)
