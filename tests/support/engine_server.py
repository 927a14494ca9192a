"""The server of `engine.py` behind real HTTP, in real time, on the event loop of the test."""

import asyncio
import contextlib
import time
from typing import Any, Self

from aiohttp import web
from support.engine import Engine, EngineSettings, Request
from support.listening import stop_listening

PROMPT_TOKENS = 50
OUTPUT_TOKENS = 120


class EngineServer:
    """An async context manager; `url` ends in `/v1`. `max_tokens` of a call is the length of its answer."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = Engine(settings, started_at=time.time())
        self.url = ""
        self.looks = 0
        """How often its metrics were read."""
        self.full_looks = 0
        """How often they said that requests wait."""
        self._ends: dict[Request, asyncio.Future[None]] = {}
        self._work = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server is not None
        self._listener = await asyncio.get_running_loop().create_server(self._runner.server, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/v1"
        self._steps = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._steps.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._steps
        await stop_listening(self._listener)
        await self._runner.cleanup()

    def models(self, *names: str, max_in_flight: int = 64) -> dict[str, dict[str, Any]]:
        """The table `models` of a configuration in which this server has all of `names`."""
        return {name: {"backends": [{"url": self.url}], "max_in_flight": max_in_flight} for name in names}

    async def ask(self, output: int = OUTPUT_TOKENS) -> Request:
        """Submit a request, and wait for its answer."""
        request = self.engine.submit(PROMPT_TOKENS, output, time.monotonic())
        self._ends[request] = asyncio.get_running_loop().create_future()
        self._work.set()
        try:
            await self._ends[request]
        finally:
            if self._ends.pop(request, None) is not None and request.ended_at is None:
                self.engine.cancel(request)
        return request

    async def _run(self) -> None:
        while True:
            if self.engine.is_idle:
                self._work.clear()
                await self._work.wait()
            seconds = self.engine.begin(time.monotonic())
            await asyncio.sleep(seconds)
            for request in self.engine.end(time.monotonic(), seconds):
                if not (end := self._ends[request]).done():
                    end.set_result(None)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        asked = await self.ask(body.get("max_tokens", OUTPUT_TOKENS))
        message = {"role": "assistant", "content": "x"}
        usage = {"prompt_tokens": asked.prompt, "completion_tokens": asked.output}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "choices": [choice], "usage": usage})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        self.looks += 1
        self.full_looks += bool(self.engine.metrics.waiting)
        return web.Response(body=self.engine.metrics.page, content_type="text/plain")
