"""Requests and answers of `/v1/embeddings`, without model and network."""

import base64
from typing import Annotated, Any, Literal, cast

import msgspec
import orjson

from tidemill.local.demo import DIMENSIONS

Text = Annotated[str, msgspec.Meta(min_length=1)]
INPUTS_MAX = 2048
"""Texts of one request, as in OpenAI's API."""


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a call to `/v1/embeddings`; ignores other fields."""

    model: str
    input: Text | Annotated[list[Text | int | list[int]], msgspec.Meta(min_length=1, max_length=INPUTS_MAX)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[DIMENSIONS] | None = None  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        """Refuse token ids, which clients make with tokenizers of OpenAI."""
        if not all(isinstance(text, str) for text in self.texts):
            raise ValueError("`input`: this model takes text, and no token ids")

    @property
    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else cast("list[str]", self.input)


def reply(request: EmbeddingRequest, vectors: list[Any], tokens: int) -> bytes:
    """The answer: one vector (a row of float32) per text, in the order of the texts."""

    def encoded(vector: Any) -> object:
        if request.encoding_format == "base64":
            return base64.b64encode(vector.tobytes()).decode("ascii")
        return vector

    data = [
        {"object": "embedding", "index": index, "embedding": encoded(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "model": request.model, "data": data, "usage": usage}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
