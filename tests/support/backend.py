"""An inference server for tests: real HTTP, answers at once or by a rule of the test, and counters.

It runs on a thread of the test's process, so a test sees each call as it comes in.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from multidict import CIMultiDictProxy
from support import shapes
from support.listening import stop_listening
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.schemas.endpoints import PROMPT

DIMENSIONS = 8
WAIT_SECONDS = 600.0
HEADERS_KEPT = 1000
SHUTDOWN_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How one call is answered.

    Attributes:
        status: The HTTP status; from 400 on the body is an error in OpenAI's shape, if `body` says no other.
        latency_seconds: How long the call takes.
        headers: More headers, `retry-after` for example.
        body: Bytes to send in place of a proper answer.
        cut: Close the connection without an answer.
    """

    status: int = 200
    latency_seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: bool = False


Rule = Callable[[dict[str, Any], int], Behaviour]
"""Returns the behaviour for a call, from its body and the number of calls with this body, this one included."""


def well(body: dict[str, Any], nth: int) -> Behaviour:
    """Every call succeeds at once."""
    del body, nth
    return Behaviour()


def as_told(body: dict[str, Any], nth: int) -> Behaviour:
    """Answer a line by its `stop`: `refuse` is a 400, `wait` outlasts every test."""
    del nth
    match body.get("stop"):
        case "refuse":
            return Behaviour(status=400)
        case "wait":
            return Behaviour(latency_seconds=WAIT_SECONDS)
        case _:
            return Behaviour()


class _Period:
    """Counters between two resets; a call belongs to the period in which it began."""

    def __init__(self) -> None:
        self.bodies: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()
        self.teams: Counter[str] = Counter()
        self.proofs: Counter[str] = Counter()
        self.headers: deque[CIMultiDictProxy[str]] = deque(maxlen=HEADERS_KEPT)
        self.in_flight = 0
        self.in_flight_max = 0
        self.open = asyncio.Event()
        self.open.set()
        self.over = asyncio.Event()


class Backend:
    """The server; a context manager. `url` ends in `/v1`.

    Attributes:
        rule: How calls are answered; may be set at any time.
        capacity: Requests that its metrics report as running at most; None is a server without metrics.
        others: Requests of other clients that its metrics report.
        looks: The `authorization` headers of requests for the metrics.
        lists: The models that it lists at `/v1/models`.
        key: The required bearer token; None requires none.
        lacks: Paths that it answers with vLLM's 404.
        listings: The `authorization` headers of requests for the list of models.
    """

    def __init__(self, rule: Rule = well, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self.rule = rule
        self._place = (host, port)
        self.url = ""
        self.others = 0
        self.capacity: int | None = None
        self.looks: Counter[str] = Counter()
        self.lists: tuple[str, ...] = ()
        self.key: str | None = None
        self.lacks: frozenset[str] = frozenset()
        self.listings: Counter[str] = Counter()
        self._period = _Period()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="backend", daemon=True)
        self._stopped = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.url, what="backend")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(WAIT_SECONDS_MAX)

    @property
    def bodies(self) -> Counter[str]:
        """How often each body came, by its JSON text with sorted keys."""
        return self._period.bodies

    @property
    def paths(self) -> Counter[str]:
        """How many calls each path had."""
        return self._period.paths

    @property
    def keys(self) -> Counter[str]:
        """The `authorization` headers that came."""
        return self._period.keys

    @property
    def teams(self) -> Counter[str]:
        """The `x-team` headers that came."""
        return self._period.teams

    @property
    def headers(self) -> list[CIMultiDictProxy[str]]:
        """The headers of the last calls."""
        return list(self._period.headers)

    @property
    def proofs(self) -> int:
        """Health probes, which belong to no line."""
        return self._period.proofs.total()

    @property
    def in_flight(self) -> int:
        """Calls that have no answer yet."""
        return self._period.in_flight

    @property
    def in_flight_max(self) -> int:
        """The most calls in flight at one time."""
        return self._period.in_flight_max

    @property
    def calls(self) -> int:
        """Calls in all."""
        return self.bodies.total()

    @property
    def repeats(self) -> int:
        """Calls whose body an earlier call had."""
        return self.calls - len(self.bodies)

    def hold(self) -> None:
        """Let every call wait before the rule answers it."""
        self._loop.call_soon_threadsafe(self._period.open.clear)

    def release(self) -> None:
        """Let the waiting calls go on."""
        self._loop.call_soon_threadsafe(self._period.open.set)

    def hurry(self) -> None:
        """Answer the calls under way at once, and all later ones, however long the rule lets them take."""
        self._loop.call_soon_threadsafe(self._period.over.set)

    def reset(self, rule: Rule = well) -> None:
        """Reset the counters, and answer by another rule; answer calls in flight, without counting them."""
        ended, self._period = self._period, _Period()
        self.rule = rule
        self._loop.call_soon_threadsafe(ended.open.set)
        self._loop.call_soon_threadsafe(ended.over.set)

    def models(self, *names: str, max_in_flight: int = 64) -> dict[str, dict[str, Any]]:
        """The table `models` of a configuration in which this server has all of `names`."""
        return {name: {"backends": [{"url": self.url}], "max_in_flight": max_in_flight} for name in names}

    def _run(self) -> None:
        # Closing the loop at once would leave connections half closed, and a later test would get the warning.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/reset", self._control)
        app.router.add_post("/set", self._control)
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/{path:.*}", self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        assert runner.server is not None
        listener = await self._loop.create_server(runner.server, *self._place, backlog=1024)
        (socket,) = listener.sockets
        self.url = f"http://{self._place[0]}:{socket.getsockname()[1]}/v1"
        await self._stopped.wait()
        await stop_listening(listener)
        await runner.cleanup()

    async def _control(self, request: web.Request) -> web.Response:
        """Answer the bench's requests for counters, as its mock backend does; the rule stays."""
        if request.path == "/reset":
            self.reset(self.rule)
        return web.Response()

    async def _stats(self, request: web.Request) -> web.Response:
        del request
        counts = {"calls": self.calls, "ok": len(self.bodies), "repeats": self.repeats, "inflight": self.in_flight}
        return web.json_response(counts)

    async def _models(self, request: web.Request) -> web.Response:
        came = request.headers.get("authorization", "")
        self.listings[came] += 1
        if self.key is not None and came != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.lists]})

    async def _metrics(self, request: web.Request) -> web.Response:
        self.looks[request.headers.get("authorization", "")] += 1
        if self.capacity is None:
            raise web.HTTPNotFound
        requests = self._period.in_flight + self.others
        running = min(self.capacity, requests)
        labels = '{engine="0",model_name="m"}'
        numbers = {"num_requests_running": running, "num_requests_waiting": requests - running}
        return web.Response(text="".join(f"vllm:{name}{labels} {n:.1f}\n" for name, n in numbers.items()))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in self.lacks:
            return web.json_response({"detail": "Not Found"}, status=404)
        period = self._period
        is_form = request.content_type == "multipart/form-data"
        body = await shapes.form(request) if is_form else json.loads(await request.read())
        key = json.dumps(body, sort_keys=True)
        counter = period.proofs if PROMPT in key else period.bodies
        counter[key] += 1
        nth = counter[key]
        period.paths[request.path] += 1
        period.keys[request.headers.get("authorization", "")] += 1
        period.headers.append(request.headers)
        period.teams[request.headers.get("x-team", "")] += 1
        period.in_flight += 1
        period.in_flight_max = max(period.in_flight_max, period.in_flight)
        try:
            await period.open.wait()
            how = self.rule(body, nth)
            if how.latency_seconds:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(period.over.wait(), how.latency_seconds)
        finally:
            period.in_flight -= 1
        if how.cut and request.transport:
            request.transport.abort()
        content = how.body if how.body is not None else json.dumps(_content(request.path, body, how)).encode()
        return web.Response(status=how.status, body=content, content_type="application/json", headers=how.headers)


def _content(path: str, body: dict[str, Any], how: Behaviour) -> dict[str, Any]:
    if path == "/v1/messages":
        return _message(body, how)
    if how.status >= 400:
        error = {"message": f"The test wants {how.status}.", "type": "test", "param": None, "code": "test"}
        return {"error": error}
    common = {"id": "x-1", "created": 1_700_000_000, "model": body.get("model")}
    match path.removeprefix("/v1/"):
        case "chat/completions":
            text = str(body["messages"][-1]["content"])
            message = {"role": "assistant", "content": f"echo: {text}"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {**common, "object": "chat.completion", "choices": [choice], "usage": _usage(text)}
        case "completions":
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            texts = [f"echo: {prompt}" for prompt in prompts for _ in range(body.get("n", 1))]
            choices = [
                {"index": n, "text": text, "finish_reason": "stop", "logprobs": None}
                for n, text in enumerate(texts)
            ]
            usage = _usage(" ".join(map(str, prompts)))
            return {**common, "object": "text_completion", "choices": choices, "usage": usage}
        case "embeddings" | "responses" as name:
            return _embeddings(body) if name == "embeddings" else _response(body, common)
        case other:
            if (reply := shapes.reply(path, body)) is None:
                raise web.HTTPNotFound(text=other)
            return reply


def _message(body: dict[str, Any], how: Behaviour) -> dict[str, Any]:
    if how.status >= 400:
        error = {"type": "invalid_request_error", "message": f"The test wants {how.status}."}
        return {"type": "error", "error": error}
    text = str(body["messages"][-1]["content"])
    words = len(text.split())
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": f"echo: {text}"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": words, "output_tokens": words + 1},
    }


def _usage(text: str) -> dict[str, int]:
    words = len(text.split())
    return {"prompt_tokens": words, "completion_tokens": words + 1, "total_tokens": 2 * words + 1}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [{"object": "embedding", "index": n, "embedding": _vector(t, body)} for n, t in enumerate(texts)]
    tokens = sum(len(str(text).split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}


def _vector(text: object, body: dict[str, Any]) -> list[float] | str:
    numbers = [byte / 255 for byte in hashlib.sha256(str(text).encode()).digest()[:DIMENSIONS]]
    if body.get("encoding_format") == "base64":
        return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *numbers)).decode()
    return numbers


def _response(body: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    text = f"echo: {body['input']}"
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg-1", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }
    return {**common, "object": "response", "status": "completed", "output": [item], "usage": usage}
