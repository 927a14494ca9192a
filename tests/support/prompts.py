"""A `Rule` of the test's backend: a server with a prefix cache of the last prompts."""

import time
from collections import OrderedDict
from heapq import heappop, heappush
from typing import Any

from support.backend import Behaviour


class Cache:
    """An LRU cache of prompts; a prompt enters it at the end of its first prefill.

    A prompt is the first message of a chat. A call takes `answer_seconds`, and without a cached prompt
    `prefill_seconds` more.
    """

    def __init__(self, *, prompts_max: int, prefill_seconds: float, answer_seconds: float) -> None:
        self.hits = 0
        self.calls = 0
        self._prompts_max = prompts_max
        self._prefill_seconds = prefill_seconds
        self._answer_seconds = answer_seconds
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._prefills: list[tuple[float, str]] = []

    def __call__(self, body: dict[str, Any], nth: int) -> Behaviour:
        """Answer a call."""
        del nth
        prompt = body["messages"][0]["content"]
        now = time.monotonic()
        while self._prefills and self._prefills[0][0] <= now:
            self._keep(heappop(self._prefills)[1])
        self.calls += 1
        if prompt in self._kept:
            self.hits += 1
            self._keep(prompt)
            return Behaviour(latency_seconds=self._answer_seconds)
        heappush(self._prefills, (now + self._prefill_seconds, prompt))
        return Behaviour(latency_seconds=self._prefill_seconds + self._answer_seconds)

    def _keep(self, prompt: str) -> None:
        self._kept[prompt] = None
        self._kept.move_to_end(prompt)
        if len(self._kept) > self._prompts_max:
            self._kept.popitem(last=False)
