"""Lines as they are written into files."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.bounds import LARGE_BYTES_MAX, LINE_BYTES_HIGHEST
from tidemill.schemas.jsonl import line

ID = "batch_" + 32 * "0"
texts = st.text(st.sampled_from('ab\\"\n\u2028\u2029\u0085é😀') | st.characters(codec="utf-8"), max_size=20)


@pytest.mark.parametrize("text", ["\u0085", "\u2028", "\u0085\u2029a"])
def test_the_largest_result_fits_the_bound_of_the_store(text: str) -> None:
    """A reply with escapes stays within the bound of an object that the log may refer to."""
    body = json.dumps({"content": text * 100_000}, ensure_ascii=False).encode()
    custom_id = json.dumps("\u0085" * 512, ensure_ascii=False).encode()
    written = line.answered(ID, 0, custom_id, status=200, request_id="r" * 128, body=body)
    around = LARGE_BYTES_MAX - 3 * LINE_BYTES_HIGHEST
    assert len(written) <= 3 * len(body) + around


@given(name=texts, content=texts, message=texts, is_raw=st.booleans())
def test_a_line_is_one_line_for_every_reader(name: str, content: str, message: str, is_raw: bool) -> None:
    """With any id, body and message; and their values do not change."""
    custom_id = json.dumps(name, ensure_ascii=not is_raw).encode()
    body = json.dumps({"content": content}, ensure_ascii=not is_raw).encode()
    error = {"code": "c", "message": message}
    written = [
        line.answered(ID, 0, custom_id, status=200, request_id="r", body=body),
        line.answered(ID, 1, custom_id, status=404, request_id="r", body=body, error=error),
        line.unanswered(ID, 2, custom_id, code="c", message=message),
    ]
    file = b"".join(written)
    lines = file.decode().splitlines()
    assert len(lines) == len(written)
    # The OpenAI SDK for Python hands on these lines of httpx.
    assert list(httpx.Response(200, content=file).iter_lines()) == lines
    first, second, third = map(json.loads, lines)
    assert first["custom_id"] == second["custom_id"] == third["custom_id"] == name
    assert first["response"]["body"] == second["response"]["body"] == {"content": content}
    assert (first["error"], second["error"], third["error"]) == (None, error, error)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (b'{"body":{"a":[{}],"model":"m"},"x":1}', "m"),
        (b'{"body":{}}', None),
        (b'{"body":{"model":1}}', None),
        (b'{"body":{"model":"\xff"}}', None),
        (b'{"body":' + b"[" * 5_000, None),
        (b"", None),
    ],
)
def test_the_model_of_any_line(text, model):
    """None if it names none."""
    assert line.model_of(text) == model
