"""The endpoints that a batch may call, one entry each: nothing else knows a path, or what is behind it."""

from dataclasses import dataclass
from typing import Final

PROMPT: Final = "Reply with the word yes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint of OpenAI's API. Source: its API reference, "Request body" and "Returns" of each."""

    name: str
    """As messages to users call it."""
    prompt: str
    """The field of a request that its server reads; a request without it is refused."""
    reply_list: str | None
    """The list that every good reply has, with at least one item; None if a good reply may have none."""
    smallest: dict[str, object]
    """A request that costs next to nothing, but for its model."""
    generates: bool = True
    """Whether a reply is made of tokens that are counted and may be bounded; if not, its size follows from the
    number of inputs, which is bounded in each batch."""
    answers_each: bool = False
    """Whether a list as prompt gets an answer for each of its items."""


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
"""By path. A new one is one more entry; `/v1` in front is the base of every server."""
UNKNOWN: Final = Endpoint(name="", prompt="input", reply_list=None, smallest={})
"""Stands for a path that is none of these, as a record of the log may name one."""
