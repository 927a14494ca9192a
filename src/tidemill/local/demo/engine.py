"""The two models, loaded from files. Calls block: run them in threads."""

import os
from pathlib import Path
from typing import Any

from tidemill.local.demo import CHAT_MODEL, CHAT_SLOTS, CHAT_TOKENS_MAX, DIMENSIONS


class Embedder:
    """WordLlama: the normalised average of a static vector for each token; thread-safe."""

    def __init__(self, vectors: Path, tokenizer: Path) -> None:
        # The tokenizer's thread pool gains nothing on short texts, and starves other processes.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import numpy as np  # noqa: PLC0415 - optional package
        import tokenizers  # noqa: PLC0415

        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The file has a safetensors head, whose size is not a multiple of a vector's, and then float16.
        numbers = np.fromfile(vectors, "<f2", offset=vectors.stat().st_size % (2 * DIMENSIONS))
        self._vectors: Any = numbers.reshape(-1, DIMENSIONS).astype(np.float32)

    def embed(self, texts: list[str]) -> tuple[list[Any], int]:
        """Embed texts as normalised rows of float32, and count their tokens."""
        encoded = [one.ids for one in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        return [self._embed(ids) for ids in encoded], sum(map(len, encoded))

    def _embed(self, ids: list[int]) -> Any:
        found = self._vectors[ids].sum(axis=0)
        # The average has the same direction; a text without tokens has none.
        return found / max((found @ found) ** 0.5, 1e-12)


class Chat:
    """SmolLM2 on the server of llama.cpp, on a free loopback port."""

    def __init__(self, weights: Path, *, threads: int) -> None:
        import xllamacpp  # noqa: PLC0415 - optional package

        params = xllamacpp.CommonParams()
        params.model.path = str(weights)
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
