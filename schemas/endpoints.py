"""What an endpoint is: one entry each, and nothing else has to know a path."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of OpenAI's API that a batch may call."""

    path: str
    list_field: str | None
    """The list that every good reply has, with at least one item; None where a good reply may have none. Source:
    OpenAI's API reference, "Returns" of each endpoint."""


_ENDPOINTS: Final = (
    Endpoint("/v1/chat/completions", list_field="choices"),
    Endpoint("/v1/completions", list_field="choices"),
    Endpoint("/v1/embeddings", list_field="data"),
    Endpoint("/v1/responses", list_field=None),
)
BY_PATH: Final = {endpoint.path: endpoint for endpoint in _ENDPOINTS}
ENDPOINTS: Final = tuple(BY_PATH)
"""The paths."""
