"""Behaviour that clients of OpenAI's service rely on, against the whole of Tidemill."""

import itertools
import json

import httpx
import openai
import pytest
from support.backend import as_told
from support.batches import WINDOWS_SHORT
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, wait_until

CHAT = "/v1/chat/completions"
ORDER = ("validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled")
ENDED = ("completed", "failed", "expired", "cancelled")
LINES = 300

pytestmark = pytest.mark.e2e


@pytest.fixture
def sdk(stack):
    """The official client."""
    with openai.OpenAI(base_url=stack.api, api_key=KEY) as client:
        yield client


def chat(n: int, **fields: object) -> dict:
    """A request."""
    body = {"model": "chat", "messages": [{"role": "user", "content": f"number {n}"}], **fields}
    return {"custom_id": f"line-{n}", "method": "POST", "url": CHAT, "body": body}


def started(sdk: openai.OpenAI, requests: list[dict], window: str = "24h", endpoint: str = CHAT):
    """A batch of these requests."""
    content = b"".join(json.dumps(each).encode() + b"\n" for each in requests)
    file = sdk.files.create(file=content, purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window)


def history(sdk: openai.OpenAI, batch_id: str) -> list:
    """All states of a batch that a client sees until it ends."""
    seen = []

    def is_over() -> bool:
        seen.append(sdk.batches.retrieve(batch_id))
        return seen[-1].status in ENDED

    wait_until(is_over, "the end")
    return seen


def lines(sdk: openai.OpenAI, file_id: str | None) -> list[dict]:
    """The lines of a file; none without a file."""
    return [] if file_id is None else [json.loads(line) for line in sdk.files.content(file_id).text.splitlines()]


def is_reconciled(sdk: openai.OpenAI, batch, total: int) -> tuple[list[dict], list[dict]]:
    """Invariant 1; returns the lines of both files."""
    output, errors = lines(sdk, batch.output_file_id), lines(sdk, batch.error_file_id)
    assert len(output) == batch.request_counts.completed
    assert len(output) + len(errors) == batch.request_counts.total == total
    assert {line["custom_id"] for line in output + errors} == {f"line-{n}" for n in range(total)}
    for line in output:
        assert (line["response"]["status_code"], line["error"]) == (200, None)
    return output, errors


def test_status_and_counts_never_go_back(sdk, backend):
    """At the end a batch has its files, and its usage is the sum of its lines."""
    backend.rule = as_told
    requests = [chat(n, **({"stop": "refuse"} if n % 10 == 0 else {})) for n in range(LINES)]
    seen = history(sdk, started(sdk, requests).id)
    ranks = [ORDER.index(batch.status) for batch in seen]
    assert ranks == sorted(ranks)
    for before, after in itertools.pairwise(seen):
        for name in ("total", "completed", "failed"):
            assert getattr(before.request_counts, name) <= getattr(after.request_counts, name)
        for name in ("created_at", "expires_at", "in_progress_at", "finalizing_at"):
            assert getattr(before, name) in {None, getattr(after, name)}
    batch = seen[-1]
    assert (batch.status, batch.model, batch.errors) == ("completed", "chat", None)
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output, errors = is_reconciled(sdk, batch, LINES)
    assert len(errors) == batch.request_counts.failed == LINES / 10
    for line in errors:
        assert (line["response"]["status_code"], line["error"]) == (400, None)
        assert set(line["response"]["body"]["error"]) == {"message", "type", "param", "code"}
    tokens = [line["response"]["body"]["usage"] for line in output]
    assert batch.usage.input_tokens == sum(each["prompt_tokens"] for each in tokens)
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in tokens)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    for file_id in (batch.output_file_id, batch.error_file_id):
        file = sdk.files.retrieve(file_id)
        assert (file.purpose, file.status) == ("batch_output", "processed")
        assert file.expires_at - file.created_at == 30 * 86_400
    listed = {file.id for file in sdk.files.list(purpose="batch_output")}
    assert {batch.output_file_id, batch.error_file_id} <= listed


def test_a_line_has_the_answer_of_a_single_call(sdk, backend):
    """Its body is the server's own, for every endpoint."""
    bodies = {
        CHAT: {"model": "chat", "messages": [{"role": "user", "content": "grüße 😀"}]},
        "/v1/completions": {"model": "chat", "prompt": "x"},
        "/v1/embeddings": {"model": "embed", "input": ["a", "b"]},
        "/v1/responses": {"model": "chat", "input": "x"},
    }
    made = {}
    for url, body in bodies.items():
        request = {"custom_id": "line-0", "method": "POST", "url": url, "body": body}
        made[url] = started(sdk, [request], endpoint=url)
    for url, body in bodies.items():
        (line,) = lines(sdk, history(sdk, made[url].id)[-1].output_file_id)
        single = httpx.post(backend.url + url.removeprefix("/v1"), json=body, timeout=WAIT_SECONDS_MAX).json()
        assert line["response"]["body"] == single


def test_a_batch_whose_lines_all_fail_is_completed(sdk, backend):
    """Without an output file."""
    backend.rule = as_told
    batch = history(sdk, started(sdk, [chat(n, stop="refuse") for n in range(3)]).id)[-1]
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (0, 3)
    assert len(is_reconciled(sdk, batch, 3)[1]) == 3


def test_a_cancelled_batch_keeps_its_results(sdk, backend):
    """The other lines are in the error file, and do not count as failed."""
    backend.rule = as_told
    made = started(sdk, [chat(0), chat(1, stop="wait"), chat(2), chat(3, stop="wait")])
    wait_until(lambda: sdk.batches.retrieve(made.id).request_counts.completed == 2, "two lines")
    cancelled = sdk.batches.cancel(made.id)
    assert cancelled.cancelling_at is not None
    batch = history(sdk, made.id)[-1]
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("cancelled", 2, 0)
    assert batch.cancelled_at >= batch.cancelling_at
    _, errors = is_reconciled(sdk, batch, 4)
    assert [(line["response"], line["error"]["code"]) for line in errors] == [(None, "batch_cancelled")] * 2


def test_cancel_a_batch_before_its_validation(sdk, backend):
    """Whether or not validation came first, every published line is in a file; a second cancel succeeds."""
    backend.rule = as_told
    made = started(sdk, [chat(n, stop="wait") for n in range(5)])
    assert sdk.batches.cancel(made.id).status in {"cancelling", "cancelled"}
    assert sdk.batches.cancel(made.id).status in {"cancelling", "cancelled"}
    batch = history(sdk, made.id)[-1]
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("cancelled", 0, 0)
    if batch.request_counts.total:
        is_reconciled(sdk, batch, 5)
    else:
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert sdk.batches.cancel(made.id).status == "cancelled"


def test_an_expired_batch_keeps_its_results(sdk, backend):
    """Its other lines are in the error file as expired."""
    backend.rule = as_told
    for window in WINDOWS_SHORT:
        batch = history(sdk, started(sdk, [chat(0), chat(1, stop="wait")], window=window).id)[-1]
        if batch.request_counts.completed:
            break
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("expired", 1, 0)
    assert batch.expired_at >= batch.expires_at == batch.created_at + int(window.removesuffix("s"))
    output, errors = is_reconciled(sdk, batch, 2)
    assert errors[0]["error"] == {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    assert batch.usage.total_tokens == output[0]["response"]["body"]["usage"]["total_tokens"]


def test_deleting_the_input_does_not_stop_a_batch(sdk, backend):
    """Not even before its validation: the batch holds its bytes."""
    backend.hold()
    made = started(sdk, [chat(n) for n in range(5)])
    sdk.files.delete(made.input_file_id)
    backend.release()
    batch = history(sdk, made.id)[-1]
    assert batch.status == "completed"
    is_reconciled(sdk, batch, 5)
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.input_file_id)


def test_a_missing_input_fails_the_batch(sdk):
    """As at OpenAI: asynchronously."""
    made = sdk.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    batch = history(sdk, made.id)[-1]
    (fault,) = batch.errors.data
    assert (batch.status, fault.code, fault.param, fault.line) == ("failed", "invalid_request", "file_id", None)
    assert "Cannot find file file-none" in fault.message
    assert batch.failed_at is not None


def test_unusual_files_run(sdk, backend):
    """A byte order mark, CRLF, blank lines, no final newline; line numbers are those of the file."""
    del backend
    request = json.dumps(chat(0)).encode()
    file = sdk.files.create(
        file=b"\xef\xbb\xbf\r\n" + request + b"\r\n\r\n" + request.replace(b"-0", b"-1"), purpose="batch"
    )
    made = sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    is_reconciled(sdk, history(sdk, made.id)[-1], 2)
    file = sdk.files.create(file=b"\xef\xbb\xbf\r\n" + request + b"\r\n\r\n" + request + b"\n{", purpose="batch")
    made = sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    faults = history(sdk, made.id)[-1].errors.data
    assert [(fault.line, fault.code) for fault in faults] == [(4, "duplicate_custom_id"), (5, "invalid_json_line")]


def test_the_output_expires(sdk, backend):
    """`output_expires_after` counts from when the output is written."""
    del backend
    file = sdk.files.create(file=json.dumps(chat(0)).encode(), purpose="batch")
    made = sdk.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    output = sdk.files.retrieve(history(sdk, made.id)[-1].output_file_id)
    assert output.expires_at - output.created_at == 3600
