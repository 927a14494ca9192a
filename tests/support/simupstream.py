"""The inference server of a simulated run."""

import asyncio
from typing import Any

import orjson
from support import upstreams
from support.simtime import Process

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.schemas.endpoints import PROMPT

REFUSED_EVERY = 7
CALL_SECONDS_MAX = 2.0
SLOW_FAULTS_SHARE = 0.4
SLOW_SECONDS_MAX = 15.0
"""Some calls outlast the time in which a process leaves its partitions, and then fail or succeed."""
WELL_SHARE = 0.9
BROKEN = (Answer(500, b"{}"), Answer(503, b"{}"), Answer(429, b"{}"), Answer(200, b"{"), FailureKind.READ)


def _reply(places: list[tuple[str, int]], name: str) -> dict[str, Any]:
    read = sum(index + 1 for _, index in places)
    usage = {"prompt_tokens": read, "completion_tokens": len(places), "total_tokens": read + len(places)}
    items = [{"index": n, "text": f"{batch_id} {index}"} for n, (batch_id, index) in enumerate(places)]
    return {name: items[::-1], "usage": usage}


class Upstream(upstreams.Upstream):
    """The backend: a line whose number is a multiple of seven is refused; a call may meet a fault."""

    def __init__(self, world: Any, process: Process, completed: CompletedLines) -> None:
        self._world = world
        self._process = process
        self._completed = completed

    async def post(
        self, url: str, headers, body: bytes, seconds: float, more: bytes = b""
    ) -> Answer | FailureKind:
        del url, headers
        self._process.check()
        chance = self._world.chance
        asked = orjson.loads(body)
        given = asked.get("input") or asked["messages"][0]
        messages = given if isinstance(given, list) else [given]
        if not isinstance(given, str | list) or given == PROMPT:
            return await self._proven(seconds)
        places = [(batch_id, int(index)) for _, batch_id, index in map(str.split, messages)]
        assert not any(self._completed.is_done(*place) for place in places), "the log has a result already"
        is_well = chance.random() < WELL_SHARE
        is_refused = any(index % REFUSED_EVERY == 0 for _, index in places)
        if is_well and (len(places) == 1 or not is_refused):
            for place in places:
                self._world.called(place, self._process)
            self._world.asked[more.partition(b": ")[2].strip().decode()].append(places)
        try:
            await asyncio.sleep(min(chance.random() * self._seconds_max(is_well=is_well), seconds))
        except asyncio.CancelledError:
            self._world.aborted(places, self._process)
            raise
        self._process.check()
        if not is_well:
            return chance.choice(BROKEN)
        if is_refused:
            return Answer(400, b'{"error":{"message":"refused"}}')
        return Answer(200, orjson.dumps(_reply(places, "data" if "input" in asked else "choices")))

    def _seconds_max(self, *, is_well: bool) -> float:
        share = self._world.slow_share if is_well else SLOW_FAULTS_SHARE
        return self._world.slow_seconds_max if self._world.chance.random() < share else CALL_SECONDS_MAX

    async def _proven(self, seconds: float) -> Answer | FailureKind:
        """A call without a line only probes the server."""
        chance = self._world.chance
        await asyncio.sleep(min(chance.random() * CALL_SECONDS_MAX, seconds))
        self._process.check()
        return Answer(200, b"{}") if chance.random() < WELL_SHARE else chance.choice(BROKEN)

    async def close(self) -> None: ...
