"""Requests in a JSON body; each becomes a line of an input, with the JSON text of its `body` as it was written."""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
import orjson
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from tidemill.api import errors
from tidemill.api.requests import faults, reading
from tidemill.api.requests.fields import Endpoint, OneOf
from tidemill.api.requests.reading import Body
from tidemill.schemas.bounds import CUSTOM_ID_CHARS_MAX, INLINE_REQUESTS_MAX
from tidemill.schemas.jsonl import nesting

BYTES_MAX: Final = 8 << 20
"""Bytes of a body with requests. It is in memory as a whole; larger inputs are files."""
LEVELS_MAX: Final = nesting.DEPTH_MAX + 2
"""Levels of a body with requests, each of which becomes a line."""

_LINE: Final = b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}\n'


_texts: Final = msgspec.json.Decoder(list[msgspec.Raw])


class InlineRequest(Body):
    """A request of a batch, like a line of an input file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=CUSTOM_ID_CHARS_MAX)]
    """Names the line of the result; unique in the batch."""
    method: Annotated[str, OneOf(("POST",))] = "POST"
    url: Endpoint | None = None
    """The endpoint of the batch; it may be absent."""
    body: Annotated[bytes, WithJsonSchema({"type": "object", "x-opaque": True})]
    """The body of the request to the endpoint."""


def _check_ids(requests: list[InlineRequest]) -> list[InlineRequest]:
    places: dict[str, int] = {}
    for place, request in enumerate(requests):
        if (first := places.setdefault(request.custom_id, place)) != place:
            fault = f"it must be unique, but 'requests[{first}]' has it, too."
            raise errors.invalid_param(f"requests[{place}].custom_id", fault, code="duplicate_custom_id")
    return requests


def _check_list(value: Any) -> Any:
    if not isinstance(value, list):
        raise faults.not_a("an array of objects")
    if not value:
        raise faults.wrong("empty_array", "at least one request is needed.")
    return value


Requests = Annotated[
    list[InlineRequest],
    Field(max_length=INLINE_REQUESTS_MAX, fail_fast=True, json_schema_extra={"minItems": 1}),
    BeforeValidator(_check_list),
    AfterValidator(_check_ids),
]


class InlineBody(Body):
    """A body that may have requests."""

    @classmethod
    def decoded(cls, content: bytes) -> Any:
        """Parse a body; the `body` of each request keeps its text, and makes no objects."""
        reading.check_json(content, LEVELS_MAX)
        if (fields := _fields(cls, content)) is None:
            return None
        requests = fields.pop("requests", b"")
        values = {name: reading.parsed(text) for name, text in fields.items()}
        if requests.startswith(b"["):
            texts = _texts.decode(requests)
            if len(texts) > INLINE_REQUESTS_MAX:
                raise errors.array_too_long("requests", INLINE_REQUESTS_MAX, len(texts))
            values["requests"] = [_request(bytes(text)) for text in texts]
        elif requests:
            values["requests"] = _shallow(requests)
        return values


@functools.cache
def _decoder(model: type[Body]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Decodes the fields of a model to their texts, and skips unknown ones."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    return msgspec.json.Decoder(
        msgspec.defstruct("Fields", [(name, msgspec.Raw, msgspec.Raw()) for name in names])
    )


def _fields(model: type[Body], text: bytes) -> dict[str, bytes] | None:
    """The texts of the fields that JSON text has; None if it is not an object."""
    if not text.strip().startswith(b"{"):
        return None
    found = msgspec.structs.asdict(_decoder(model).decode(text))
    return {name: bytes(raw).strip() for name, raw in found.items() if bytes(raw)}


def _request(text: bytes) -> Any:
    if (fields := _fields(InlineRequest, text)) is None:
        return _shallow(text)
    body = fields.pop("body", None)
    values = {name: _shallow(value) for name, value in fields.items()}
    if body is not None:
        values["body"] = body if body.startswith(b"{") else _shallow(body)
    return values


def _shallow(text: bytes) -> Any:
    """The value of JSON text, but for the contents of an object or array: those are never wanted."""
    kind = {b"{": b"{}", b"[": b"[]"}
    return orjson.loads(kind.get(text.strip()[:1], text))


def lines(requests: list[InlineRequest], endpoint: str, *, bytes_max: int) -> Iterator[bytes]:
    """The lines of an input, each with its newline.

    Raises:
        ApiError: 400, a `url` is not the endpoint; 413, a line has more than `bytes_max`.
    """
    for place, request in enumerate(requests):
        if request.url not in {None, endpoint}:
            fault = f"it must be the endpoint of the batch, '{endpoint}'."
            raise errors.invalid_param(f"requests[{place}].url", fault)
        # Outside of a string, where JSON has them escaped, they are whitespace.
        body = request.body.replace(b"\n", b" ").replace(b"\r", b" ")
        line = _LINE % (orjson.dumps(request.custom_id), endpoint.encode(), body)
        if len(line) > bytes_max:
            raise errors.body_too_large(bytes_max, param=f"requests[{place}]")
        yield line
