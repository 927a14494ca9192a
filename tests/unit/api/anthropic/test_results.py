"""The error of a line as a result of Anthropic's API."""

import orjson
import pytest
from support.dependencies import NOW, batch_of
from support.ended_batches import errored

from tidemill.api.anthropic import results
from tidemill.schemas.jsonl import line as lines
from tidemill.schemas.jsonl.lines import Line
from tidemill.schemas.resources.batch import BatchError, BatchErrors, Status


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"error","error":{"type":"x","n":123456789012345678901234567890}}',
        b'{"type":"error","error":{"type":"x","detail":' + b"[" * 510 + b"]" * 510 + b"}}",
        b'{"error":"overloaded","more":' + b"[" * 511 + b"]" * 511 + b"}",
        b'{"error":{"message":["overloaded"]},"n":1e999}',
    ],
)
def test_an_error_of_a_server_never_breaks_the_results(body):
    """Its text stays, with numbers and nesting that an encoder refuses; a line has any object of a server."""
    error = {"code": "x", "message": "overloaded"}
    text = lines.answered("b", 0, b'"r-0"', status=529, request_id="req_9", body=body, error=error)
    found = results.result(text, failed=True)
    if body.startswith(b'{"type"'):
        assert (
            found
            == b'{"custom_id":"r-0","result":{"type":"errored","error":{"request_id":"req_9",%b}}\n' % body[1:]
        )
    else:
        assert orjson.loads(found)["result"] == errored("overloaded_error", "overloaded", "req_9")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body","messages"],"msg":"field required"}]}', "field required"),
        (b'{"error":"too long","error_type":"Validation"}', "too long"),
        (b'{"reason":7}', '{"reason":7}'),
    ],
)
def test_an_error_of_any_server_keeps_its_message(body, message):
    """Also one without an `error`; the whole body if it has no message."""
    text = lines.answered("b", 0, b'"r-0"', status=400, request_id="req_9", body=body)
    found = orjson.loads(results.result(text, failed=True))["result"]
    assert found == errored("invalid_request_error", message, "req_9")


def test_a_fault_that_ingest_found_has_anthropics_name_of_the_body():
    """Its text was written for OpenAI's lines."""
    said = "Invalid type for 'body.max_tokens': expected an integer, but got a string instead."
    text = lines.unanswered("b", 0, b'"r-0"', code="invalid_type", message=said)
    message = said.replace("body", "params")
    assert orjson.loads(results.result(text, failed=True))["result"] == errored("invalid_request_error", message)
    fault = BatchError(code="invalid_type", message=said, param="body.max_tokens", line=1)
    batch = batch_of("batch_1", status=Status.FAILED, expires_at=NOW, errors=BatchErrors(data=(fault,)))
    found = orjson.loads(results.Rejected(batch).result(Line(number=1, offset=0, data=b'{"custom_id":"r-0"}')))
    assert found["result"]["error"]["error"]["message"] == f"params.max_tokens: {message}"
