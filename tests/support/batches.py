"""Batches at a service, through the official SDK."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from openai import OpenAI
from support.backend import Behaviour
from support.waiting import wait_until

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")
FAILS_EVERY = 97
WINDOWS_SHORT = ("4s", "16s", "64s")
"""A test of an expiry tries one after the other: what has to happen before it takes longer on a busy machine."""
WINDOWS = json.dumps(dict.fromkeys(("24h", *WINDOWS_SHORT), 0.5))
"""A setting of an installation."""


def create(
    client: OpenAI, content: Iterable[bytes], endpoint: str = CHAT, window: Any = "24h", **options: Any
) -> str:
    """Upload an input and create its batch; returns the batch's id."""
    file = client.files.create(file=("in.jsonl", b"".join(content)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **options).id  # type: ignore[call-overload]


def ended(client: OpenAI, batch_id: str) -> Any:
    """The batch, once it is over."""
    return wait_until(
        lambda: (batch := client.batches.retrieve(batch_id)).status in OVER and batch,
        f"end of {batch_id}",
    )


def one_line() -> list[bytes]:
    """An input of one line."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    return [json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body}).encode()]


def numbered(first: int, count: int) -> Iterator[bytes]:
    """Lines with numbers as their texts."""
    for number in range(first, first + count):
        body = {"model": "chat", "messages": [{"role": "user", "content": str(number)}]}
        line = {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}
        yield json.dumps(line).encode() + b"\n"


def refusing(body: Any, _: int) -> Behaviour:
    """Refuse every 97th line; each answer takes a moment, so that calls are always in flight."""
    number = int(body["messages"][0]["content"])
    return Behaviour(status=400 if number % FAILS_EVERY == 0 else 200, latency_seconds=0.02)


def check_numbered(client: OpenAI, batch: Any, first: int, count: int) -> None:
    """Check that both files have each line once and in order, and that the receipt and the counts match."""
    wanted = range(first, first + count)
    assert batch.status == "completed"
    receipt = batch.tidemill["receipt"]
    output = client.files.content(batch.output_file_id).content
    errors = client.files.content(batch.error_file_id).content
    refused = [number for number in wanted if number % FAILS_EVERY == 0]
    assert _numbers(errors) == refused
    assert _numbers(output) == [number for number in wanted if number % FAILS_EVERY]
    for content, part in ((output, "output"), (errors, "errors")):
        assert hashlib.sha256(content).hexdigest() == receipt[part]["sha256"]
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (count, 0, 0)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (count, count - len(refused), len(refused))
    usage = [json.loads(line)["response"]["body"]["usage"] for line in output.splitlines()]
    assert batch.usage.total_tokens == sum(tokens["total_tokens"] for tokens in usage)


def _numbers(content: bytes) -> list[int]:
    return [int(json.loads(line)["custom_id"].removeprefix("line-")) for line in content.splitlines()]
