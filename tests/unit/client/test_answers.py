"""Lines of results: what their answers say, and replies that few parsers take."""

import pytest

from tidemill.client.library.answers import Line


def line(body):
    return Line.from_result({"custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "t"}}]}, "t"),
        ({"choices": [{"message": {"content": [{"type": "thinking"}, {"type": "text", "text": "t"}]}}]}, "t"),
        ({"choices": [{"text": "t"}]}, "t"),
        ({"output": [{"type": "reasoning"}, {"content": [{"type": "output_text", "text": "t"}]}]}, "t"),
        ({"output": [{"type": "reasoning", "content": None}, {"content": []}]}, ""),
        ({"content": [{"type": "text", "text": "t"}, {"type": "tool_use"}]}, "t"),
        ({"choices": []}, None),
        ({"choices": [{"message": {"content": None}}]}, None),
        ({"data": [{"embedding": [1.0]}]}, None),
        ({}, None),
    ],
)
def test_text_of_an_answer(body, text):
    """Of the endpoints that have one."""
    assert line(body).text == text


def test_half_a_surrogate_pair_ends_nothing():
    """A reply may have one, as the standard library takes it."""
    found = Line.parse(b'{"custom_id":"a","response":{"status_code":200,"body":{"x":"\\ud800"}},"error":null}')
    assert found.body == {"x": "\ud800"}
