"""Calls of an ended batch are aborted: the server stops working on them, and their places are free."""

import json

import pytest
from openai import OpenAI
from openai.types import Batch
from support.backend import Backend, as_told
from support.batches import WINDOWS_SHORT
from support.stack import KEY, Stack
from support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 70
"""More than may be in flight."""
CHAT = "/v1/chat/completions"


def created(client: OpenAI, lines: int, window: str, **more: str) -> Batch:
    """A batch."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **more}
    texts = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": CHAT, "body": body | {"seed": n}}) + "\n"
        for n in range(lines)
    ]
    file = client.files.create(file=("in.jsonl", "".join(texts).encode()), purpose="batch")
    # This installation has other windows.
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=window)  # type: ignore[arg-type]


@pytest.mark.parametrize(("windows", "end"), [(("24h",), "cancelled"), (WINDOWS_SHORT, "expired")])
async def test_calls_of_a_batch_that_is_over_are_aborted(
    stack: Stack, backend: Backend, windows: tuple[str, ...], end: str
) -> None:
    """None of its open lines counts any more; the next batch has the whole server."""
    with OpenAI(base_url=stack.api, api_key=KEY, max_retries=0) as client:
        for window in windows:
            backend.reset(as_told)
            held = created(client, LINES, window, stop="wait")
            await until(
                lambda held=held: backend.calls >= 8 or client.batches.retrieve(held.id).status == end, "calls"
            )
            if backend.calls >= 8:
                break
        if end == "cancelled":
            await until(lambda: backend.in_flight == 64, "as many calls as there may be")
            client.batches.cancel(held.id)
        await until(lambda: backend.in_flight == 0, "their end")
        await until(lambda: client.batches.retrieve(held.id).status == end, f"{held.id} to be {end}")
        found = client.batches.retrieve(held.id)
        assert found.request_counts is not None
        assert (found.request_counts.completed, found.request_counts.failed) == (0, 0)
        assert not backend.repeats
        after = created(client, LINES, "24h")
        await until(lambda: client.batches.retrieve(after.id).status == "completed", f"the end of {after.id}")
