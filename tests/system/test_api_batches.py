"""The stage `api` on a real broker and a folder: batches, as the SDK and plain HTTP see them."""

import openai
import pytest
from support.api_use import CHAT, LINE, fault, new_batch, publish, stored
from support.waiting import wait_until

from tidemill.schemas.resources.batch import RequestCounts, Status

pytestmark = pytest.mark.kafka


def test_a_new_batch_is_visible_at_once(sdk, plain):
    """Create, retrieve, list; the deadline is the end of the window."""
    file = sdk.files.create(file=LINE, purpose="batch")
    made = sdk.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="1h", metadata={"a": "b"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    assert (made.status, made.expires_at - made.created_at, made.metadata) == ("validating", 3600, {"a": "b"})
    assert made.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    assert sdk.batches.retrieve(made.id) == made
    made_ids = [made.id, *(new_batch(sdk).id for _ in range(2))]
    assert set(made_ids) <= {batch.id for batch in sdk.batches.list(limit=1)}
    page = plain.get("/batches", params={"limit": 2}).json()
    assert (len(page["data"]), page["has_more"], page["last_id"]) == (2, True, page["data"][-1]["id"])


def test_a_batch_of_a_missing_input_is_created(sdk):
    """As at OpenAI: ingest finds later that the file is missing."""
    made = sdk.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    assert made.status == "validating"


GOOD = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}


@pytest.mark.parametrize(
    ("change", "expected", "message"),
    [
        ({"input_file_id": None}, ("input_file_id", "missing_required_parameter"), "'input_file_id'."),
        ({"input_file_id": 1}, ("input_file_id", "invalid_type"), "but got an integer instead."),
        ({"endpoint": "/v1/x"}, ("endpoint", "invalid_value"), "'/v1/pooling', and '/v1/messages'."),
        ({"completion_window": "48h"}, ("completion_window", "invalid_value"), "'48h'. Supported values"),
        ({"completion_window": ""}, ("completion_window", "invalid_value"), "Invalid value: ''"),
        ({"metadata": []}, ("metadata", "invalid_type"), "expected an object, but got an array"),
        ({"metadata": {"tags": []}}, ("metadata.tags", "invalid_type"), "expected a string, but got an array"),
        ({"metadata": {"k": "v" * 513}}, ("metadata.k", "string_above_max_length"), "512"),
        ({"metadata": {str(n): "" for n in range(17)}}, ("metadata", "object_above_max_properties"), "16"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            ("output_expires_after.seconds", "integer_above_max_value"), "2592000",
        ),
        (
            {"output_expires_after": {"seconds": 3600}},
            ("output_expires_after.anchor", "missing_required_parameter"), "'output_expires_after.anchor'",
        ),
    ],
)  # fmt: skip
def test_invalid_batches(plain, change, expected, message):
    """Each fault is a 400 at once, with its field."""
    answer = plain.post("/batches", json=GOOD | change)
    assert fault(answer) == (400, *expected)
    assert message in answer.json()["error"]["message"]


def test_a_file_of_another_purpose_is_refused(sdk):
    """The purpose must be `batch`."""
    file = sdk.files.create(file=LINE, purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"input_file_id":"\\ud800"}', b" " * (9 << 20)])
def test_a_body_that_is_no_object_is_a_400(plain, body):
    """A too large one is a 413."""
    answer = plain.post("/batches", content=body, headers={"content-type": "application/json"})
    assert fault(answer)[0] == (413 if len(body) > 8 << 20 else 400)


def test_a_cancel_holds_against_older_records(api, sdk):
    """A batch stays `cancelling`, and its counts never go back."""
    batch = new_batch(sdk)
    counted = RequestCounts(total=9, completed=5)
    publish(api, batch.model_copy(update={"status": Status.IN_PROGRESS, "request_counts": counted}))
    wait_until(lambda: sdk.batches.retrieve(batch.id).status == "in_progress", "the record")
    cancelled = sdk.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    assert sdk.batches.cancel(batch.id) == cancelled
    late = {"status": Status.IN_PROGRESS, "request_counts": RequestCounts(total=9, completed=4, failed=1)}
    publish(api, batch.model_copy(update=late))
    seen = wait_until(lambda: (b := sdk.batches.retrieve(batch.id)).request_counts.failed and b, "the late record")
    assert (seen.status, seen.cancelling_at) == ("cancelling", cancelled.cancelling_at)
    assert seen.request_counts.completed == 5
    over = {"status": Status.CANCELLED, "cancelled_at": 5, "output_file_id": "file-o", "request_counts": counted}
    publish(api, batch.model_copy(update=over))
    wait_until(lambda: sdk.batches.retrieve(batch.id).status == "cancelled", "the end")
    assert sdk.batches.cancel(batch.id).output_file_id == "file-o"


@pytest.mark.parametrize("status", [Status.FINALIZING, Status.COMPLETED, Status.FAILED, Status.EXPIRED])
def test_an_ended_batch_cannot_be_cancelled(api, sdk, plain, status):
    """The answer is a 409 that the SDK does not retry."""
    batch = new_batch(sdk)
    publish(api, batch.model_copy(update={"status": status}))
    wait_until(lambda: sdk.batches.retrieve(batch.id).status == status, "the record")
    answer = plain.post(f"/batches/{batch.id}/cancel")
    assert fault(answer) == (409, None, None)
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["message"] == f"Cannot cancel a batch with status '{status}'."


def test_the_bytes_of_a_deleted_input_stay_while_its_batch_runs(api, sdk):
    """Without a running batch, they are deleted with the file."""
    batch = new_batch(sdk)
    sdk.files.delete(batch.input_file_id)
    assert batch.input_file_id in stored(api)
    loose = sdk.files.create(file=LINE, purpose="batch")
    sdk.files.delete(loose.id)
    assert loose.id not in stored(api)
    publish(api, batch.model_copy(update={"status": Status.FAILED, "failed_at": 1}))
    wait_until(lambda: sdk.batches.retrieve(batch.id).status == "failed", "the end")
    # A sweep comes with each start, too.
    api.stop()
    api.start()
    wait_until(lambda: batch.input_file_id not in stored(api), "the bytes to go")
