"""The settings of endpoints that the table of `schemas/endpoints.py` lacks."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from tidemill.configuration.misconfigured import Table
from tidemill.schemas.bounds import WORD_CHARS_MAX, Word
from tidemill.schemas.endpoints import PROMPT, Endpoint, ReplyRules, is_path

_TYPES: Final[dict[str, type]] = {
    "string": str, "array": list, "object": dict, "integer": int, "number": float, "boolean": bool,
}  # fmt: skip
_SAMPLES: Final[dict[str, Any]] = {
    "string": PROMPT, "array": [PROMPT], "object": {"text": PROMPT}, "integer": 1, "number": 1.5, "boolean": False,
}  # fmt: skip


def _check_path(path: str) -> str:
    if not is_path(path):
        raise ValueError(f"{path}: expected a path like /v1/mine, of at most {WORD_CHARS_MAX} characters")
    return path


EndpointPath = Annotated[str, AfterValidator(_check_path)]
JsonType = Literal["string", "array", "object", "integer", "number", "boolean"]


class CustomEndpoint(Table):
    """An endpoint that Tidemill does not know, which batches and models may then name.

    It cannot stream, and its replies are JSON objects.
    """

    required: Annotated[dict[Word, Annotated[tuple[JsonType, ...], Field(min_length=1)]], Field(min_length=1)]
    """Fields that a request must have, each with the JSON types that it may have, like
    `{ input = ["string", "array"] }`. The first one is the prompt: its bytes are estimated as tokens, and its
    prefix groups lines."""
    reply_list: Word | None = None
    """The list that has at least one item in every good reply; by default there is none."""
    usage: tuple[Word, ...] = ()
    """Paths of the token counts in a reply without `usage`, like `meta.tokens`, in order of preference."""
    generates: bool = True
    """Whether a reply costs more tokens than its request has; otherwise `total_tokens` alone are input tokens."""
    embeds: bool = False
    """Whether each item of the prompt gets a vector; a batch may then have at most 50,000 items."""
    beside_v1: bool = False
    """Whether a server has the path beside its `/v1`, as vLLM has `/classify`."""
    smallest: dict[str, Any] | None = None
    """A cheap request, without its model, to find out whether a server works; by default one with the required
    fields."""

    def endpoint(self, path: str) -> Endpoint:
        """The entry of the table."""
        form = {name: tuple(_TYPES[kind] for kind in kinds) for name, kinds in self.required.items()}
        smallest = self.smallest or {name: _SAMPLES[kinds[0]] for name, kinds in self.required.items()}
        return Endpoint(
            name=path.removeprefix("/v1/"),
            forms=(form,),
            reply=ReplyRules(filled=self.reply_list, usage=("usage", *self.usage)),
            smallest=smallest,
            generates=self.generates,
            items="embedded" if self.embeds else "one",
            is_beside_v1=self.beside_v1,
        )
