"""Times a fault to hit a batch at a given moment of its life, and checks afterwards that it did.

Both use the API alone. A strike met its batch if the batch ended well after the strike, in another process than
the struck one; after a miss, another strike aims at the next batch.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from chaos.checker import OVER
from openai import OpenAIError
from support.waiting import WAIT_SECONDS_MAX, wait_until

AWAY = (OpenAIError, httpx.HTTPError, OSError, ValueError)
"""Errors of a client while the api is down."""
LINES_MIN = 300
"""A smaller batch ends before a signal can reach a process."""
AIM_SECONDS_MAX = WAIT_SECONDS_MAX
AFTER_SECONDS_MIN = 2.0
"""A new process needs longer to start and take over a partition: a batch that ended earlier was missed.
The API's times are whole seconds."""
STRIKES_MAX = 6
"""Strikes until one meets its batch."""

MOMENTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "lines": lambda before, now: now["status"] == "in_progress" and done(before) < done(now) < 0.6 * total(now),
    "finalizing": lambda before, now: before["status"] != now["status"] == "finalizing",
}
"""Tests of a batch, as first seen and now: in the middle of its lines, and while results writes its files."""


class Aim:
    """Takes aim at the batches of a run.

    Attributes:
        strikes: Number of strikes by the moment they aim at.
        met: Number of strikes that met a batch at that moment.
    """

    def __init__(self, batches: Callable[[], list[dict[str, Any]]]) -> None:
        """`batches` lists all batches as the API shows them; it may raise while the API is down."""
        self._batches = batches
        self._struck: set[str] = set()
        self.strikes: Counter[str] = Counter()
        self.met: Counter[str] = Counter()

    def strike_at(self, moment: str, strike: Callable[[str], None]) -> None:
        """Wait for a batch to come to a moment and strike, until a strike has met one.

        Args:
            moment: One of `MOMENTS`.
            strike: Called with the batch's id; afterwards some process must be left to go on with the batch.

        Raises:
            AssertionError: No batch reaches the moment, a batch never ends, or `STRIKES_MAX` strikes missed.
        """
        for _ in range(STRIKES_MAX):
            batch_id = self._wait(moment)
            at = time.time()
            strike(batch_id)
            self.strikes[moment] += 1
            ended = wait_until(lambda name=batch_id: self.ended(name), f"end of {batch_id}")
            if ended > at + AFTER_SECONDS_MIN:
                self.met[moment] += 1
                return
        raise AssertionError(f"none of {STRIKES_MAX} strikes met a batch at {moment}")

    def ended(self, batch_id: str) -> int:
        """When a batch ended, Unix seconds; 0 if it has not, or while the api is down."""
        batch = self._find(batch_id)
        return int(batch[f"{batch['status']}_at"]) if batch is not None and batch["status"] in OVER else 0

    def final(self, batch_id: str) -> int:
        """How many lines of a batch are final; 0 while the api is down."""
        batch = self._find(batch_id)
        return 0 if batch is None else done(batch)

    def _find(self, batch_id: str) -> dict[str, Any] | None:
        with suppress(*AWAY):
            return next((batch for batch in self._batches() if batch["id"] == batch_id), None)
        return None

    def _wait(self, moment: str) -> str:
        """The id of the next large batch that reaches the moment; returns no batch twice."""
        first: dict[str, dict[str, Any]] = {}

        def found() -> str | None:
            for batch in self._large():
                if MOMENTS[moment](first.setdefault(batch["id"], batch), batch):
                    return str(batch["id"])
            return None

        batch_id = wait_until(found, f"a large batch at {moment}", seconds_max=AIM_SECONDS_MAX)
        assert batch_id is not None
        self._struck.add(batch_id)
        return batch_id

    def _large(self) -> list[dict[str, Any]]:
        with suppress(*AWAY):
            return [
                batch for batch in self._batches() if total(batch) >= LINES_MIN and batch["id"] not in self._struck
            ]
        return []


def total(batch: dict[str, Any]) -> int:
    """Lines of a batch."""
    return int((batch["request_counts"] or {}).get("total", 0))


def done(batch: dict[str, Any]) -> int:
    """Lines of a batch that are final."""
    counts = batch["request_counts"] or {}
    return int(counts.get("completed", 0) + counts.get("failed", 0))
