"""What an endpoint is: one entry each, and nothing else has to know a path."""

from dataclasses import dataclass
from typing import Final

PROMPT: Final = "Reply with the word yes."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of OpenAI's API that a batch may call."""

    path: str
    list_field: str | None
    """The list that every good reply has, with at least one item; None where a good reply may have none. Source:
    OpenAI's API reference, "Returns" of each endpoint."""
    smallest: dict[str, object]
    """A request that costs next to nothing, but for its model."""


_ENDPOINTS: Final = (
    Endpoint(
        "/v1/chat/completions", "choices", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
    ),
    Endpoint("/v1/completions", "choices", {"prompt": PROMPT, "max_tokens": 1}),
    Endpoint("/v1/embeddings", "data", {"input": PROMPT}),
    Endpoint("/v1/responses", None, {"input": PROMPT, "max_output_tokens": 16}),
)
BY_PATH: Final = {endpoint.path: endpoint for endpoint in _ENDPOINTS}
ENDPOINTS: Final = tuple(BY_PATH)
"""The paths."""
