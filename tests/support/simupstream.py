"""The inference server of a simulated run."""

import asyncio
from typing import Any

import orjson
from support.simtime import Process

from tidemill.processors.failures import Answer, FailureKind

REFUSED_EVERY = 7
CALL_SECONDS_MAX = 2.0
WELL_SHARE = 0.9
BROKEN = (Answer(500, b"{}"), Answer(503, b"{}"), Answer(429, b"{}"), Answer(200, b"{"), FailureKind.READ)


class Upstream:
    """The backend: a line whose number is a multiple of seven is refused; a call may meet a fault."""

    def __init__(self, world: Any, process: Process) -> None:
        self._world = world
        self._process = process

    async def post(
        self, url: str, headers, body: bytes, seconds: float, more: bytes = b""
    ) -> Answer | FailureKind:
        del url, headers, more
        self._process.check()
        chance = self._world.chance
        message = orjson.loads(body)["messages"][0]
        if not isinstance(message, str):
            return await self._proven(seconds)
        _, batch_id, index = message.split()
        is_well = chance.random() < WELL_SHARE
        if is_well:
            self._world.called((batch_id, int(index)), self._process)
        await asyncio.sleep(min(chance.random() * CALL_SECONDS_MAX, seconds))
        self._process.check()
        if not is_well:
            return chance.choice(BROKEN)
        if int(index) % REFUSED_EVERY == 0:
            return Answer(400, b'{"error":{"message":"refused"}}')
        usage = {"prompt_tokens": int(index) + 1, "completion_tokens": 1, "total_tokens": int(index) + 2}
        return Answer(200, orjson.dumps({"choices": [f"{batch_id} {index}"], "usage": usage}))

    async def _proven(self, seconds: float) -> Answer | FailureKind:
        """A call without a line only probes the server."""
        chance = self._world.chance
        await asyncio.sleep(min(chance.random() * CALL_SECONDS_MAX, seconds))
        self._process.check()
        return Answer(200, b"{}") if chance.random() < WELL_SHARE else chance.choice(BROKEN)

    async def close(self) -> None: ...
