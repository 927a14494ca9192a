"""Receipt, errors by code, and timeline."""

import orjson
from support.dependencies import NOW, batch_of

from tidemill.api.batches import report
from tidemill.schemas.jsonl import line
from tidemill.schemas.resources.batch import (
    BatchError,
    BatchErrors,
    Extras,
    FileReceipt,
    Receipt,
    RequestCounts,
    Status,
)

ID = "batch_" + "2" * 32


def batch(status=Status.IN_PROGRESS, **fields):
    return batch_of(ID, status=status, expires_at=NOW + 60, **fields)


def refused(index, code, message="no"):
    body = orjson.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}})
    return line.answered(ID, index, b'"id-%d"' % index, status=400, request_id="r", body=body)


def test_errors_are_grouped_and_sampled():
    """By code and status, the most frequent first, with at most three samples each."""
    tally = report.ErrorGroups()
    for index in range(5):
        tally.add(index, refused(index, "too_long"))
    tally.add(5, refused(5, None))
    tally.add(6, line.unanswered(ID, 6, b'"id-6"', code="batch_expired", message="late"))
    found = tally.report()
    assert found.total == 7
    assert [(group.code, group.status_code, group.count) for group in found.data] == [
        ("too_long", 400, 5),
        ("batch_expired", None, 1),
        ("t", 400, 1),
    ]
    assert [sample.custom_id for sample in found.data[0].samples] == ["id-0", "id-1", "id-2"]


def test_a_body_without_an_error_is_grouped_by_status():
    """A server may answer anything."""
    tally = report.ErrorGroups()
    for body in (b"{}", b'{"error":"text"}', b'{"error":{"code":5}}', b"[1]"):
        tally.add(0, line.answered(ID, 0, b'"a"', status=422, request_id="r", body=body))
    (group,) = tally.report().data
    assert (group.code, group.count) == ("http_422", 4)
    assert [sample.message for sample in group.samples] == ["{}", "text", '{"error":{"code":5}}']


def test_a_flat_error_has_its_code_and_message():
    """SGLang and FastAPI send no `error`."""
    tally = report.ErrorGroups()
    for body in (
        b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}',
        b'{"detail":[{"loc":["body"],"msg":"field required"},{"msg":"not a list"}]}',
    ):
        tally.add(0, line.answered(ID, 0, b'"a"', status=400, request_id="r", body=body))
    assert [(group.code, group.samples[0].message) for group in tally.report().data] == [
        ("BadRequestError", "too long"),
        ("http_400", "field required; not a list"),
    ]


def test_tidemills_error_precedes_the_servers():
    """If a line has both; numbers of any size do not fail."""
    error = {"code": "endpoint_not_served", "message": "not served"}
    body = b'{"error":{"message":"own","code":%b}}' % (b"1" * 5000)
    text = line.answered(ID, 0, b'"a"', status=404, request_id="r", body=body, error=error)
    tally = report.ErrorGroups()
    tally.add(0, text)
    tally.add(1, line.answered(ID, 1, b'"b"', status=404, request_id="r", body=body))
    concluded, said = sorted(tally.report().data, key=lambda group: group.code)
    assert (concluded.code, concluded.samples[0].message) == ("endpoint_not_served", "not served")
    assert (said.code, said.samples[0].message) == ("http_404", "own")
    assert report.fault(text) == ("endpoint_not_served", 404)


def test_groups_are_bounded():
    """Thousands of codes do not make thousands of groups."""
    tally = report.ErrorGroups()
    for index in range(2 * report.GROUPS_MAX):
        tally.add(index, refused(index, f"code-{index}"))
    found = tally.report()
    assert len(found.data) == report.GROUPS_MAX + 1
    assert found.data[0].code == "other"
    assert found.total == 2 * report.GROUPS_MAX


def test_the_receipt_is_final_at_the_end():
    """Before, it has the number of pending lines."""
    running = report.receipt(batch(request_counts=RequestCounts(total=5, completed=2, failed=1)))
    assert (running.final, running.pending, running.output) == (False, 2, None)
    receipt = Receipt(lines=5, output=FileReceipt(lines=5, bytes=9, sha256="a"))
    counts = RequestCounts(total=5, completed=5)
    over = report.receipt(batch(Status.COMPLETED, request_counts=counts, tidemill=Extras(receipt=receipt)))
    assert (over.final, over.pending, over.missing, over.output.sha256) == (True, 0, 0, "a")


def test_the_timeline_is_in_order():
    """With the deadline while it is ahead."""
    events = report.timeline(batch(in_progress_at=NOW + 1)).data
    assert [event.event for event in events] == ["created", "in_progress", "deadline"]
    over = report.timeline(batch(Status.COMPLETED, in_progress_at=NOW + 1, completed_at=NOW + 3)).data
    assert [event.event for event in over] == ["created", "in_progress", "completed"]


def test_faults_of_an_input_are_grouped():
    """A failed batch has no lines; the report has the faults of its input."""
    faults = BatchErrors(data=tuple(BatchError(code="invalid_url", message="m", line=n) for n in (1, 4, 5, 6)))
    found = report.refused(batch(Status.FAILED, errors=faults))
    assert (found.total, found.data[0].code, len(found.data[0].samples)) == (4, "invalid_url", 3)
    assert found.data[0].samples[1].index == 3
