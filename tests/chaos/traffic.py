"""The batches of a run: mixed sizes, several models, and some that are cancelled, expire or are open."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from chaos.mock import REFUSED_EVERY, answer_of, usage_of
from openai import OpenAI

MODELS = {"chat-a": "/v1/chat/completions", "chat-b": "/v1/chat/completions", "embed": "/v1/embeddings"}
INPUTS_PER_CALL = {"chat-a": 1, "chat-b": 1, "embed": 4}
WINDOW_SHORT = "20s"
CANCELLED_EVERY = 7
EXPIRING_EVERY = 11
OPEN_EVERY = 4
SIZES = (1, 7, 60, 400)
"""Share of small batches; the others divide the remaining lines."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch to create.

    Attributes:
        number: Its number in the run.
        model: The model of its lines.
        lines: Number of lines.
        window: Its completion window.
        is_cancelled: Whether the run cancels it.
        padding: Bytes added to one line, so that its record refers to the input file.
    """

    number: int
    model: str
    lines: int
    window: str = "24h"
    is_cancelled: bool = False
    padding: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every line must run."""
        return self.window != WINDOW_SHORT and not self.is_cancelled

    @property
    def is_open(self) -> bool:
        """Whether the run opens it, appends its lines and seals it."""
        return self.is_whole and self.number % OPEN_EVERY == OPEN_EVERY - 1

    @property
    def endpoint(self) -> str:
        """The endpoint of its lines."""
        return MODELS[self.model]

    def text(self, index: int) -> str:
        """The text of line `index`, unique in a run."""
        padding = "x" * self.padding if index == self.lines // 2 else ""
        return f"{padding}job {self.number} line {index}"

    def content(self) -> bytes:
        """The input file."""
        return b"".join(orjson.dumps(self._line(index)) + b"\n" for index in range(self.lines))

    def is_refused(self, index: int) -> bool:
        """Whether the backend refuses a line."""
        return index % REFUSED_EVERY == 0

    def is_answer(self, index: int, body: dict[str, Any]) -> bool:
        """Whether this is the backend's answer to a line."""
        text = self.text(index)
        if self.endpoint.endswith("embeddings"):
            return bool(body["data"][0]["embedding"] == list(usage_of(text)))
        return bool(body["choices"][0]["message"]["content"] == answer_of(text))

    def upload(self, client: OpenAI) -> str:
        """Upload the input; returns the file's id. Each call creates a file."""
        return client.files.create(file=("in.jsonl", self.content()), purpose="batch").id

    def create(self, client: OpenAI, run: str, file_id: str) -> str:
        """Create the batch and return its id; repeated calls return the same batch."""
        batch: dict[str, Any] = client.post(
            "/batches",
            cast_to=dict,
            body={"input_file_id": file_id, "endpoint": self.endpoint, "completion_window": self.window},
            options={"headers": {"Idempotency-Key": f"{run}-{self.number}"}},
        )
        return str(batch["id"])

    def open(self, client: OpenAI, run: str) -> str:
        """Create the batch as an open one and return its id; repeated calls return the same batch."""
        batch: dict[str, Any] = client.post(
            "/batches",
            cast_to=dict,
            body={"open": True, "endpoint": self.endpoint, "completion_window": self.window},
            options={"headers": {"Idempotency-Key": f"{run}-{self.number}"}},
        )
        return str(batch["id"])

    def append(self, client: OpenAI, batch_id: str, sequence: int, *, lines: int) -> None:
        """Append so many lines to the open batch, under this number."""
        indices = range((sequence - 1) * lines, min(sequence * lines, self.lines))
        body = {"sequence": sequence, "requests": [self._line(index) for index in indices]}
        client.post(f"/batches/{batch_id}/requests", cast_to=dict, body=body)

    def seal(self, client: OpenAI, batch_id: str) -> None:
        """Seal the open batch."""
        client.post(f"/batches/{batch_id}/seal", cast_to=dict, body={})

    def _line(self, index: int) -> dict[str, Any]:
        text = self.text(index)
        asked = (
            {"input": text}
            if self.endpoint.endswith("embeddings")
            else {"messages": [{"role": "user", "content": text}]}
        )
        body = {"model": self.model, **asked}
        return {"custom_id": f"l-{index}", "method": "POST", "url": self.endpoint, "body": body}


def jobs(seed: int, *, batches: int, lines: int, ends: bool = True) -> Iterator[Job]:
    """The batches of a run.

    Args:
        seed: Seed of sizes, models and order.
        batches: Number of batches.
        lines: Least number of lines of all batches together.
        ends: Whether some are cancelled and some expire.
    """
    chance = random.Random(seed)
    small = [chance.choice(SIZES) for _ in range(batches // 2)]
    rest = batches - len(small)
    sizes = [*small, *(max(1, (lines - sum(small)) // rest) for _ in range(rest))]
    chance.shuffle(sizes)
    for number, size in enumerate(sizes):
        yield Job(
            number=number,
            model=chance.choice(list(MODELS)),
            lines=size,
            window=WINDOW_SHORT if ends and number % EXPIRING_EVERY == EXPIRING_EVERY - 1 else "24h",
            is_cancelled=ends and number % CANCELLED_EVERY == CANCELLED_EVERY - 1,
            padding=300_000 if size in (60, 400) else 0,
        )
