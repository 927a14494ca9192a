"""What a model's calls and lines count as."""

import pytest

from tidemill.instruments import Buckets
from tidemill.processors.backends.call_metrics import LOOK_LINES, RECENT_CALLS, CallMetrics, LineCounts
from tidemill.processors.calls import request_codec
from tidemill.processors.failures import Answer, FailureKind
from tidemill.schemas.log.codec import LineMark

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("status", "body", "counted"),
    [
        (200, b'{"ok":true}', "unusable"),
        (200, b"<html>", "unusable"),
        (200, b'{"error":{"message":"too long","code":400}}', "4xx"),
        (200, b'{"error":{"message":"too long","type":"invalid_request_error"}}', "4xx"),
        (200, b'{"error":{"message":"down","code":500}}', "5xx"),
        (200, b'{"choices":[{"finish_reason":"abort"}]}', "unusable"),
        (400, b"{}", "4xx"),
        (503, b"{}", "5xx"),
    ],
)
def test_a_reply_that_is_no_answer_is_not_a_good_call(status, body, counted):
    """The alert of failing servers leaves out 2xx and 4xx."""
    calls = CallMetrics(Buckets([1.0]))
    calls.failed(CHAT, request_codec.judge(Answer(status, body), CHAT), 0.1, None)
    assert dict(calls.folded().ended) == {(CHAT, counted): 1}


def test_an_answer_that_does_not_fit_its_schema_is_an_answer():
    """The schema or the prompt may be at fault."""
    good = request_codec.judge(Answer(200, b'{"choices":[{"message":{"content":"x"}}]}'), CHAT)
    calls = CallMetrics(Buckets([1.0]))
    calls.failed(CHAT, request_codec.unfit(good, "it has no field x"), 0.1, None)
    assert dict(calls.folded().ended) == {(CHAT, "2xx"): 1}


def test_the_usual_time_is_that_of_the_last_good_calls():
    """Neither calls of long ago nor those that failed count."""
    calls = CallMetrics(Buckets([1.0]))
    assert calls.usual_seconds(0.9) is None
    for seconds in (*[300.0] * 1000, *[3.0] * RECENT_CALLS):
        calls.answered(CHAT, seconds, 0.1, None, 5)
    for _ in range(1000):
        calls.failed(CHAT, request_codec.judge(FailureKind.TIMEOUT, CHAT), 600.0, None)
    assert calls.usual_seconds(0.9) == 3.0


def lines(counts, failed):
    """A tenth of a look, with so many failed lines."""
    counts.add([LineMark(number, 1, number < failed) for number in range(LOOK_LINES // 10)])


def test_the_log_says_once_that_most_lines_fail(caplog):
    """And once that they do not any more: half of them is neither."""
    caplog.set_level("INFO")
    counts = LineCounts("m")
    for failed in (*[2] * 20, *[6] * 40, *[5] * 30, *[10] * 10, *[2] * 20):
        lines(counts, failed)
    assert [record.getMessage() for record in caplog.records] == [
        "most lines of the model m fail: 60 of the last 100; their batches have the errors",
        "lines of the model m succeed again: 20 of the last 100 failed",
    ]
