"""What the check of a long line costs."""

from support.checking import fault, line, request_body, verdict

from tidemill.ingest.files import outline, validation
from tidemill.ingest.files.verdict import Passed


def test_a_body_with_very_many_fields_is_refused():
    """Processors would need long for it; text with many colons, and fields further inside, are none."""
    most, padding = outline.FIELDS_MAX, {"padding": ":" * validation.LONG_LINE_BYTES}
    body = request_body(**padding, inner={str(number): {} for number in range(2 * most)})
    assert verdict(line(body=body)) == Passed(total=1, models=("m",))
    found = fault(line(body=body | {str(number): 0 for number in range(most - 3)}))
    assert (found.code, found.param, found.message) == (
        "invalid_request", "body", "The body has more than 10,000 fields.",
    )  # fmt: skip


def test_the_fields_of_tools_and_messages_are_not_counted(monkeypatch):
    """They have names and colons as a body of many fields has; such lines are common, and are not read again."""
    monkeypatch.delattr(outline, "_lines")
    many = [{str(number): number for number in range(outline.FIELDS_MAX)}]
    assert verdict(line(body=request_body(messages=many, tools=many))) == Passed(total=1, models=("m",))
