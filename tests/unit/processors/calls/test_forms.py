"""The form of a line with files: its memory is bounded, however the line names them."""

import msgspec
import pytest

from tidemill.processors.calls.forms import Forms
from tidemill.processors.memory_budget import LineBudget
from tidemill.schemas import ids
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl import attachments
from tidemill.schemas.jsonl.attachments import AttachmentError
from tidemill.schemas.log.part import file_key
from tidemill.storage.directory import DirectoryStore


async def test_a_file_counts_as_often_as_it_is_named(tmp_path, monkeypatch):
    """A line of a stream may name one file many times, and the form has it as often."""
    store, file_id = DirectoryStore(tmp_path), ids.new_file_id("p")

    async def chunks():
        yield b"\x89PNG\r\n\x1a\n" * 10

    await store.write(file_key(file_id), chunks())
    monkeypatch.setattr(attachments, "BYTES_MAX", 200)
    forms, endpoint = Forms(store, LineBudget()), ENDPOINTS["/v1/images/edits"]

    async def size(times):
        body = msgspec.json.encode({"model": "m", "prompt": "x", "image": [file_id] * times})
        async with forms.form(endpoint, body, "p") as form:
            return len(form)

    assert await size(2) > 160
    with pytest.raises(AttachmentError, match="at most 200 bytes together"):
        await size(3)
