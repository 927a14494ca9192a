"""Bounds: any message fits into its record, and the tests find fields without a bound."""

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from support.largest import largest

from tidemill.schemas.bounds import (
    BATCH_LINES_MAX,
    ERRORS_BYTES_MAX,
    ERRORS_MAX,
    NUMBER_MAX,
    OUTPUTS_MAX,
    RECORD_BYTES_EXTRA,
    RECORD_BYTES_MAX,
    TIME_MAX,
    TOKENS_MAX,
    Id,
)
from tidemill.schemas.log import codec, messages
from tidemill.schemas.resources.batch import Batch, BatchError, BatchErrors, Extras, FileReceipt, Receipt, Status
from tidemill.schemas.resources.load import ProcessReport
from tidemill.schemas.resources.waiting import WAITING_MAX, Reason, Waiting
from tidemill.schemas.webhooks import messages as hooks

RECORDS = [
    messages.Command, messages.Fact, messages.BatchRecord, messages.FileRecord, messages.KeyRecord,
    messages.LedgerRecord, messages.Claim, messages.Erasure, messages.Secret, messages.UploadMessage,
    messages.QueueRecord, ProcessReport, hooks.EndpointRecord, hooks.EventRecord, hooks.StateRecord,
]  # fmt: skip
NASTY = "\x00"


@pytest.mark.parametrize("kind", RECORDS, ids=str)
def test_each_record_fits(kind):
    """The largest there can be, with room for the key, the headers and the framing."""
    assert largest(kind) + RECORD_BYTES_EXTRA < RECORD_BYTES_MAX


@pytest.mark.parametrize("kind", [str, int, float, tuple[Id, ...], dict[Id, Id]])
def test_a_field_without_a_bound_is_found(kind):
    """The walk finds each unbounded field."""

    class Loose(BaseModel):
        field: kind | None = None

    with pytest.raises(AssertionError, match=r"Loose\.field"):
        largest(Loose)


def test_no_batch_is_larger_than_computed():
    """A batch with everything at its bound, in the characters that take most."""
    error = BatchError(code=NASTY * 10, message=NASTY * 20, param=NASTY)
    receipt = FileReceipt(lines=NUMBER_MAX, bytes=NUMBER_MAX, sha256="f" * 64)
    waiting = Waiting(
        reason=Reason.TOKENS_PER_MINUTE, lines=NUMBER_MAX, server=NASTY * 255, message=NASTY * 300, since=TIME_MAX
    )
    batch = Batch(
        id="b" * 64, endpoint=NASTY * 64, model=NASTY * 255, input_file_id="f" * 64, completion_window=NASTY * 64,
        status=Status.VALIDATING, created_at=0, expires_at=0, errors=BatchErrors(data=(error,) * ERRORS_MAX),
        metadata={f"{n:02}" + NASTY * 62: NASTY * 512 for n in range(16)},
        tidemill=Extras(
            stream=NASTY * 255, waiting=(waiting,) * WAITING_MAX, output_file_ids=("f" * 64,) * OUTPUTS_MAX,
            receipt=Receipt(lines=1, outputs=(receipt,) * OUTPUTS_MAX),
        ),
    )  # fmt: skip
    record = messages.BatchRecord(project=NASTY * 255, batch=batch)
    assert RECORD_BYTES_MAX // 4 < len(codec.encode(record)) <= largest(messages.BatchRecord)


def test_errors_have_a_bound_in_bytes():
    """At the bound they are taken, one more is not."""
    size = ERRORS_BYTES_MAX // 256
    error = BatchError(code="c", message="m" * (size - len('{"code":"c","message":""},')))
    assert len(BatchErrors(data=(error,) * 256).data) == 256
    with pytest.raises(ValidationError, match="errors have more than"):
        BatchErrors(data=(error,) * 257)


@pytest.mark.parametrize("text", ["", "file-abc_0", "x" * 64])
def test_every_id_is_accepted(text):
    """Its characters have a place in keys of the store and in URLs."""
    assert TypeAdapter(Id).validate_python(text) == text


@pytest.mark.parametrize("text", ["a/b", "../x", "a\n", "ä", "x" * 65, "x" * 1_000_000, "\x00"])
def test_other_texts_are_not_ids(text):
    """Neither too long nor with other characters."""
    with pytest.raises(ValidationError):
        TypeAdapter(Id).validate_python(text)


def test_the_tokens_of_the_largest_batch_are_a_number_for_everybody():
    """Input and output together."""
    assert 2 * TOKENS_MAX * BATCH_LINES_MAX < NUMBER_MAX
