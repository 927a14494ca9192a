"""Makes the request lines of rows: chats and embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from tidemill.tables import RowError
from tidemill.tables.answers import is_strict
from tidemill.tables.pictures import SIDE_PIXELS, data_url
from tidemill.tables.templates import Template

CHAT: Final = "/v1/chat/completions"
EMBEDDINGS: Final = "/v1/embeddings"
NOT_FLOAT32: Final = frozenset({"embed_dtype", "endianness", "output_dtype"})
"""Fields that ask for vectors of other numbers than float32, or in another order of bytes."""
SHOWN_ANSWER_CHARS: Final = 20_000
"""Characters of a faulty answer that its repair shows to the model."""
REPAIR: Final = (
    "Your answer does not fit the JSON schema: {fault}. "
    "Answer again with JSON that fits the schema, and with nothing else."
)


class Requests(Protocol):
    """Makes requests of one endpoint."""

    @property
    def endpoint(self) -> str:
        """The path of the endpoint."""

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """The columns that it needs, of those of the source."""

    def identity(self) -> str:
        """Everything that determines the requests, besides the rows."""

    def line(self, number: int, row: Mapping[str, Any]) -> bytes:
        """The request of a row.

        Raises:
            RowError: The row cannot be asked.
        """


def _line(number: int, endpoint: str, body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": body}) + b"\n"
    except (TypeError, RecursionError) as error:
        raise RowError(f"its request is not JSON: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeds a column, or a text made of several.

    Attributes:
        model: The model.
        source: The column, or a template.
        more: More fields of each request.
    """

    model: str
    source: str | Template
    more: Mapping[str, Any] = field(default_factory=dict)
    endpoint: str = EMBEDDINGS

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """See `Requests.columns`."""
        return [self.source] if isinstance(self.source, str) else self.source.columns(names)

    def identity(self) -> str:
        """See `Requests.identity`."""
        is_column = isinstance(self.source, str)
        return repr((self.model, is_column, str(self.source), self.more))

    def line(self, number: int, row: Mapping[str, Any]) -> bytes:
        """See `Requests.line`."""
        text = self.source.render(row) if isinstance(self.source, Template) else _text(row, self.source)
        if not text:
            raise RowError("its text is empty")
        # Four times as small as decimals, and exact.
        body = {"model": self.model, "input": text, "encoding_format": "base64", **self.more}
        return _line(number, self.endpoint, body)


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(found := row[column], str):
        raise RowError(f"{column} is null" if found is None else f"{column} is not text")
    return found


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Asks a model about each row.

    The system prompt and the examples come first, since they are the same for all rows: a server computes a prefix
    that requests share once.

    Attributes:
        model: The model.
        prompt: Makes the question of a row; None asks about its pictures alone.
        opening: The messages before the question.
        schema: The JSON Schema of the answer.
        images: Columns with pictures.
        side: Bound of a picture's longer side, in pixels.
        more: More fields of each request.
    """

    model: str
    prompt: Template | None
    opening: Sequence[Mapping[str, Any]] = ()
    schema: Mapping[str, Any] | None = None
    images: Sequence[str] = ()
    side: int = SIDE_PIXELS
    more: Mapping[str, Any] = field(default_factory=dict)
    endpoint: str = CHAT

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """See `Requests.columns`."""
        return sorted({*(self.prompt.columns(names) if self.prompt else ()), *self.images})

    def identity(self) -> str:
        """See `Requests.identity`."""
        return repr((self.model, str(self.prompt), self.opening, self.schema, self.images, self.side, self.more))

    def line(self, number: int, row: Mapping[str, Any]) -> bytes:
        """See `Requests.line`."""
        return _line(number, self.endpoint, self._body(row))

    def repair(self, line: bytes, answer: str, fault: str) -> bytes:
        """The request of a row whose answer does not fit: the one that was sent, the answer and its fault."""
        request = orjson.loads(line)
        request["body"]["messages"] += [
            {"role": "assistant", "content": answer[:SHOWN_ANSWER_CHARS]},
            {"role": "user", "content": REPAIR.format(fault=fault)},
        ]
        return orjson.dumps(request) + b"\n"

    def _body(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [*self.opening, {"role": "user", "content": self._content(row)}],
            **({"response_format": _format(self.schema)} if self.schema is not None else {}),
            **self.more,
        }

    def _content(self, row: Mapping[str, Any]) -> Any:
        text = self.prompt.render(row) if self.prompt is not None else ""
        urls = [data_url(row[column], self.side) for column in self.images if row.get(column) is not None]
        if not urls:
            if not text.strip():
                raise RowError("its prompt is empty")
            return text
        words = [{"type": "text", "text": text}] if text.strip() else []
        return [*words, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def _format(schema: Mapping[str, Any]) -> dict[str, Any]:
    strict = {"strict": True} if is_strict(schema) else {}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **strict}}
