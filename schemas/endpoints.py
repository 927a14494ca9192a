"""The endpoints that a batch may call, one entry each; no other module names a path."""

from dataclasses import dataclass
from typing import Final

PROMPT: Final = "Reply with the word yes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint of OpenAI's API. Source: its API reference, "Request body" and "Returns" of each."""

    name: str
    """Its name in messages to users."""
    prompt: str
    """The required field with the prompt."""
    reply_list: str | None
    """The list with at least one item in every good reply; None if there is no such list."""
    smallest: dict[str, object]
    """The cheapest request, without its model."""
    generates: bool = True
    """Whether replies are generated tokens; if not, their size follows from the inputs, which a batch bounds."""
    answers_each: bool = False
    """Whether each item of a prompt that is a list gets an answer."""


ENDPOINTS: Final = {
    "/v1/chat/completions": Endpoint(
        name="Chat Completions",
        prompt="messages",
        reply_list="choices",
        smallest={"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1},
    ),
    "/v1/completions": Endpoint(
        name="Completions",
        prompt="prompt",
        reply_list="choices",
        smallest={"prompt": PROMPT, "max_tokens": 1},
        answers_each=True,
    ),
    "/v1/embeddings": Endpoint(
        name="Embeddings",
        prompt="input",
        reply_list="data",
        smallest={"input": PROMPT},
        generates=False,
        answers_each=True,
    ),
    "/v1/responses": Endpoint(
        name="Responses", prompt="input", reply_list=None, smallest={"input": PROMPT, "max_output_tokens": 16}
    ),
}
"""The endpoints by path; its `/v1` stands for the base URL of a server."""
UNKNOWN: Final = Endpoint(name="", prompt="input", reply_list=None, smallest={})
"""Stands for any other path that a record of the log may name."""
