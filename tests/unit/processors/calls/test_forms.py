"""The form of a line with files: its memory is bounded, however the line names them."""

import asyncio
import time

import msgspec
import orjson
import pytest
from support.servers import configured

from tidemill.configuration.servers import Model
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.failures import FailureKind
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.lines import Entry, Line
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.schemas import ids
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl import attachments
from tidemill.schemas.jsonl.attachments import AttachmentError
from tidemill.schemas.log.codec import RequestHead
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


async def test_the_fields_of_a_form_count_in_the_budget(tmp_path):
    """Not only its files: a line of 100 KB whose form would have 500 MB is refused before it is made."""
    budget = LineBudget(1 << 30)
    forms, endpoint = Forms(DirectoryStore(tmp_path), budget), ENDPOINTS["/v1/audio/transcriptions"]
    line = {"model": "m", "file": "data:audio/wav;base64,UklGRg=="}
    async with forms.form(endpoint, msgspec.json.encode({**line, "prompt": ["x"] * 1000}), "p") as form:
        assert len(form) - 300 <= budget._used <= len(form) + 100_000
    assert budget._used == 0
    with pytest.raises(AttachmentError) as caught:
        async with forms.form(endpoint, msgspec.json.encode({**line, "n" * 55_000: [0] * 27_000}), "p"):
            pytest.fail("the form was made")
    assert caught.value.field == "n" * 55_000


async def test_a_line_whose_file_is_deleted_keeps_its_custom_id(tmp_path):
    """Its error line names it, though no server was called."""
    store, upstream, url = DirectoryStore(tmp_path), HttpUpstream(), "/v1/images/edits"
    pool = configured({"m": Model(backends=({"url": "http://127.0.0.1:9/v1"},))}, clock=time.time).pools["m"]
    pool.set_part(1.0, 0.0)
    caller = Caller(
        pool=pool, endpoint_probe=EndpointProbe("m", pool, upstream), upstream=upstream, store=store,
        forms=Forms(store, LineBudget()), clock=time.time, seconds_max=5,
    )  # fmt: skip
    body = {"model": "m", "prompt": "x", "image": ids.new_file_id("p")}
    text = orjson.dumps({"custom_id": "mine", "method": "POST", "url": url, "body": body})
    head = RequestHead(batch_id="batch_1", project="p", first=0, deadline=int(time.time()) + 60, url=url)
    permit = pool.acquire(asyncio.get_running_loop().time())
    made = await caller.make(Line(head, 0, text, [Entry(PartitionWindow(None), 0, 1, len(text))]), permit)
    assert (made.custom_id, made.end.kind) == (b'"mine"', FailureKind.INPUT_GONE)
