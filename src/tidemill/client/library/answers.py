"""A finished run of a file, and a line of the results with the text or vector in its answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from tidemill.client.runs.outcome import BatchResult
from tidemill.schemas import UNREADABLE
from tidemill.schemas.resources.batch import Receipt


def _texts(parts: list[dict[str, Any]], kind: str) -> list[str]:
    return [part["text"] for part in parts if part.get("type") == kind]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a line.

    Attributes:
        custom_id: Its id in the input; None of a line that could not be read.
        index: Its place in the input of its batch, from 0; None in a file of results.
        status_code: HTTP status of the server; None if it gave no answer.
        body: The server's answer; None without one.
        error: `code` and `message` of a line that failed without an answer.
    """

    custom_id: str | None
    index: int | None = None
    status_code: int | None = None
    body: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the server answered the line."""
        return self.status_code is not None and self.status_code < 400  # noqa: PLR2004 - HTTP

    @property
    def text(self) -> str | None:
        """The text of an answer to a chat, a completion, a response or a message; None for others."""
        match self.body:
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                return text
            case {"choices": [{"message": {"content": list(parts)}}, *_]}:
                return "".join(_texts(parts, "text"))
            case {"choices": [{"text": str(text)}, *_]}:
                return text
            case {"output": list(items)}:
                return "".join(
                    _texts([part for item in items for part in item.get("content") or ()], "output_text")
                )
            case {"content": list(parts)}:
                return "".join(_texts(parts, "text"))
        return None

    @property
    def embedding(self) -> list[float] | None:
        """The vector of an answer to an embedding of one text; None for others."""
        match self.body:
            case {"data": [{"embedding": list(vector)}]}:
                return vector
        return None

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line of an output or error file."""
        try:
            return cls.from_result(msgspec.json.decode(line))
        except UNREADABLE:
            # Half a surrogate pair, which only the standard library takes.
            return cls.from_result(json.loads(line))

    @classmethod
    def from_result(cls, result: dict[str, Any], index: int | None = None) -> Self:
        """Make a line of an object of an output or error file."""
        response = result.get("response") or {}
        return cls(
            custom_id=result["custom_id"],
            index=index,
            status_code=response.get("status_code"),
            body=response.get("body"),
            error=result.get("error"),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run of a file.

    Attributes:
        output: File of the answers; it exists if a line has one.
        errors: File of the failed lines; it exists if a line failed.
        batches: The batches of the run, in the order of the input.
        receipt: Lines, bytes and hashes of the files; None if no line ran.
    """

    output: Path
    errors: Path
    batches: list[BatchResult]
    receipt: Receipt | None

    @property
    def ok(self) -> bool:
        """Whether every line has an answer, and the files agree with the receipts."""
        return all(not batch.exit for batch in self.batches)

    def lines(self) -> Iterator[Line]:
        """Read the answers, then the failed lines, one at a time."""
        for path in (self.output, self.errors):
            if path.exists():
                with path.open("rb") as file:
                    yield from map(Line.parse, file)
