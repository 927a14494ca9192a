"""The files of a batch whose input is deleted before all its lines were run."""

import json

import pytest
from support.results_limits import file_rules

from tidemill.results.files.compaction import UNNAMED, Compactor, write_part
from tidemill.results.state.active_batch import PartBuffer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas import ids
from tidemill.schemas.jsonl import line
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status
from tidemill.storage.directory import DirectoryStore

TOTAL = 6
NOW = 1_800_000_000
BATCH = "batch_" + "0" * 32


class Store(DirectoryStore):
    """A folder in which the input disappears after some of its lines were read."""

    lines_left = 0

    async def read(self, key, start=0, end=None):
        """See `Store`."""
        if key != "files/in":
            async for chunk in super().read(key, start, end):
                yield chunk
            return
        for number in range(self.lines_left):
            yield b'{"custom_id":"%d"}\n' % number
        raise NotFound(key)


@pytest.mark.parametrize("read", [0, 3, TOTAL])
async def test_a_batch_ends_without_its_input(tmp_path, read):
    """With an error line for each line that was not run, which lacks its name where nothing has it."""
    store = Store(tmp_path)
    store.lines_left = read
    batch = Batch(
        id=BATCH, endpoint="/v1/embeddings", input_file_id="in", completion_window="24h", model="m",
        status=Status.FINALIZING, created_at=NOW, expires_at=NOW, request_counts=RequestCounts(total=TOTAL),
    )  # fmt: skip
    buffer, done = PartBuffer(), LineBitmap()
    text = line.unanswered(BATCH, 1, b'"run"', code="x", message="x")
    buffer.add([LineMark(index=1, size=len(text), failed=True)], text)
    done.mark(1, failed=True)
    part = await write_part(store, BATCH, 0, buffer, failed=True)
    state = State(
        id=BATCH, partition=0, batch=batch, input=InputRef(key="files/in", bytes=1), ending=Status.EXPIRED,
        closed=True, parts=(part,),
    )  # fmt: skip
    fact = await Compactor(store, lambda: NOW, file_rules()).compact(state, done)
    assert (fact.receipt.errors.lines, fact.receipt.missing, fact.receipt.double) == (TOTAL, 0, 0)
    key = file_key(ids.derived_file_id(BATCH, "errors"))
    found = [json.loads(text) for text in b"".join([chunk async for chunk in store.read(key)]).splitlines()]
    names = [str(index) if index < read else None for index in range(TOTAL)]
    assert [one["custom_id"] for one in found] == [names[0], "run", *names[2:]]
    for index, one in enumerate(found):
        assert (UNNAMED in one["error"]["message"]) is (index != 1 and index >= read)
        assert one["error"]["code"] == ("x" if index == 1 else "batch_expired")
