"""The demo backend: two small real models, whose weights come from Python packages.

SmolLM2-135M-Instruct on llama.cpp serves chat, WordLlama serves embeddings. `tidemill backend-demo` runs it as one
process with an OpenAI-compatible API. This module is cheap to import: only `tidemill.local.demo.engine` imports
the packages of the models.
"""

import importlib.util
from typing import Any

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "wordllama-256"
DIMENSIONS = 256
"""Numbers in one embedding."""
CHAT_SLOTS = 4
"""Concurrent chats of the engine."""
CHAT_TOKENS_MAX = 2048
"""Tokens of a chat, prompt and answer together."""

CHAT_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
EMBEDDING_ENDPOINTS = ("/v1/embeddings",)

INSTALL = "pip install 'tidemill[demo]' (with uv: uvx 'tidemill[demo]' up)"
"""How to install what it needs."""

_MODULES = ("numpy", "pip", "tokenizers", "xllamacpp")


def is_installed() -> bool:
    """Whether the extra `demo` is installed; imports none of its modules."""
    return all(importlib.util.find_spec(module) for module in _MODULES)


def models(base_url: str) -> dict[str, dict[str, Any]]:
    """The table `models` of `tidemill.toml` for this backend, at its address with `/v1`."""
    backends = [{"url": base_url}]
    # Twice the slots, so that a slot that becomes free finds its next chat in the queue of the engine.
    chat = {"endpoints": list(CHAT_ENDPOINTS), "max_in_flight": 2 * CHAT_SLOTS, "timeout_seconds": 300}
    embedding = {"endpoints": list(EMBEDDING_ENDPOINTS), "max_in_flight": 16, "timeout_seconds": 60}
    return {CHAT_MODEL: {"backends": backends, **chat}, EMBEDDING_MODEL: {"backends": backends, **embedding}}
