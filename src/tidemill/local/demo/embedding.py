"""What an embedding request may say, and how its answer is laid out; no model and no network in here."""

import base64
from typing import Annotated, Any, Literal, Protocol

import msgspec
import orjson

from tidemill.local.demo import DIMENSIONS

Text = Annotated[str, msgspec.Meta(min_length=1)]
INPUTS_MAX = 2048
"""Texts of one request, as at OpenAI."""


class Vector(Protocol):
    """One row of 32-bit numbers, as numpy has it."""

    def tobytes(self) -> bytes: ...  # noqa: D102 - numpy's own


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a call to `/v1/embeddings`; other fields are let through unread."""

    model: str
    input: Text | Annotated[list[Text], msgspec.Meta(min_length=1, max_length=INPUTS_MAX)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[DIMENSIONS] | None = None  # type: ignore[valid-type]

    @property
    def texts(self) -> list[str]:
        """The input as a list, whichever way it came."""
        return [self.input] if isinstance(self.input, str) else self.input


def parse(body: bytes) -> EmbeddingRequest:
    """Read a body.

    Raises:
        msgspec.DecodeError: It is no JSON, or a field has a value that cannot be used.
    """
    return msgspec.json.decode(body, type=EmbeddingRequest)


def reply(request: EmbeddingRequest, vectors: list[Any], tokens: int) -> bytes:
    """Lay out the answer: one vector a text, in the order of the texts."""

    def shown(vector: Vector) -> object:
        if request.encoding_format == "base64":
            return base64.b64encode(vector.tobytes()).decode("ascii")
        return vector

    data = [
        {"object": "embedding", "index": index, "embedding": shown(vector)} for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "model": request.model, "data": data, "usage": usage}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
