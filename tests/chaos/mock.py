"""The backend of the fault runs: a process of its own that answers, counts, and misbehaves as a seed says.

`GET /stats` gives its counters, `POST /set?NAME=VALUE` changes its behaviour. The seed, the line and the number of
its calls decide the fate of a call, so a run can be repeated. Only calls with a good answer count, sent or not:
Tidemill must repeat a call that a fault of this server spoilt.
"""

import argparse
import asyncio
import hashlib
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httptools
import orjson
import uvloop

from tidemill.schemas.endpoints import PROMPT

REFUSED_EVERY = 97
"""The backend always refuses lines whose number is a multiple of this, with a 400."""
SLOW_EVERY = 100
HUGE_BYTES = 100 << 20
CHUNK_BYTES = 1 << 20
FAULTY_TRIES_MAX = 3
"""Further tries of a line get a good answer."""
FAULTS = ("429", "500", "cut", "html", "huge", "nothing", "close")
PHRASES = {200: "OK", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Down"}


def usage_of(text: str) -> tuple[int, int]:
    """Tokens of a line, input and output: a function of the line."""
    digest = hashlib.blake2b(text.encode(), digest_size=2).digest()
    return 1 + digest[0] % 50, 1 + digest[1] % 20


def answer_of(text: str) -> str:
    """The answer to a line."""
    return f"echo: {text}"


class Mock:
    """Behaviour and counters; `shares` has the share of calls that each fault hits."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.latency_seconds = 0.0
        self.slow_seconds = 0.0
        """Additional latency of lines whose number is a multiple of `SLOW_EVERY`."""
        self.padding = ""
        self.is_down = False
        self.shares: dict[str, float] = {}
        self.came: Counter[bytes] = Counter()
        self.good: Counter[bytes] = Counter()
        self.spoilt: Counter[str] = Counter()
        self.in_flight = 0
        self.callers: dict[str, tuple[int, float]] = {}
        """By key: the number of calls, and the time of the last one on the monotonic clock."""

    def stats(self) -> dict[str, Any]:
        """The counters; `repeats` counts calls for a line after a good one."""
        good = self.good.total()
        return {
            "calls": self.came.total(),
            "good": good,
            "lines": len(self.good),
            "repeats": good - len(self.good),
            "in_flight": self.in_flight,
            "spoilt": dict(self.spoilt),
            "callers": self.callers,
        }

    def note(self, caller: str) -> None:
        """Count a call of a caller."""
        calls, _ = self.callers.get(caller, (0, 0.0))
        self.callers[caller] = calls + 1, time.monotonic()

    def set(self, query: str) -> None:
        """Change the behaviour."""
        for name, value in parse_qsl(query):
            if name == "latency":
                self.latency_seconds = float(value)
            elif name == "down":
                self.is_down = value == "true"
            elif name == "slow":
                self.slow_seconds = float(value)
            elif name == "padding":
                self.padding = "x" * int(value)
            else:
                self.shares[name] = float(value)

    def fate(self, text: bytes) -> str:
        """The fate of this call: `well`, or the name of a fault."""
        self.came[text] += 1
        if self.is_down:
            return "down"
        nth = self.came[text]
        if nth > FAULTY_TRIES_MAX:
            return "well"
        digest = hashlib.blake2b(b"%d %d %b" % (self.seed, nth, text), digest_size=8).digest()
        dice = int.from_bytes(digest, "big") / (1 << 64)
        for name, share in self.shares.items():
            if dice < share:
                return name
            dice -= share
        return "well"


class Connection(asyncio.Protocol):
    """One connection; calls on it come one after the other."""

    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._caller = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        del error
        for task in self._tasks:
            task.cancel()
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._caller = value.decode().removeprefix("Bearer ")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        parts = urlsplit(self._url.decode())
        match parts.path:
            case "/stats":
                self._send(200, orjson.dumps(self._mock.stats()))
            case "/set":
                self._mock.set(parts.query)
                self._send(200, b"{}")
            case path if path.startswith("/v1/") and self._parser.get_method() == b"POST":
                task = asyncio.ensure_future(self._answer(path, b"".join(self._body)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                self._send(200, b'{"object":"list","data":[]}')

    def _send(self, status: int, body: bytes, *, kind: str = "application/json", more: str = "") -> None:
        assert self._transport is not None
        head = f"HTTP/1.1 {status} {PHRASES[status]}\r\ncontent-type: {kind}\r\n{more}"
        self._transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def _answer(self, path: str, body: bytes) -> None:
        mock = self._mock
        asked = orjson.loads(body)
        given = asked["input"] if path.endswith("embeddings") else asked["messages"][-1]["content"]
        texts = given if isinstance(given, list) else [given]
        if given == PROMPT:
            # A health probe, without a line.
            await self._fulfil("down" if mock.is_down else "proof", path, texts)
            return
        mock.note(self._caller)
        fates = [mock.fate(text.encode()) for text in texts]
        fate = next((fate for fate in fates if fate != "well"), "well")
        if fate != "well":
            mock.spoilt[fate] += 1
        elif len(texts) == 1 or not any(map(_is_refused, texts)):
            mock.good.update(text.encode() for text in texts)
        mock.in_flight += len(texts)
        try:
            is_slow = any(_number(text) % SLOW_EVERY == 0 for text in texts)
            if seconds := mock.latency_seconds + mock.slow_seconds * is_slow:
                await asyncio.sleep(seconds)
            await self._fulfil(fate, path, texts)
        finally:
            mock.in_flight -= len(texts)

    async def _fulfil(self, fate: str, path: str, texts: list[str]) -> None:
        assert self._transport is not None
        match fate:
            case "well" if any(map(_is_refused, texts)):
                self._send(400, b'{"error":{"message":"Refused.","type":"test","param":null,"code":"refused"}}')
            case "well" | "proof":
                self._send(200, orjson.dumps(self._content(path, texts)))
            case "429":
                self._send(429, _error("slow down"), more="retry-after: 0.3\r\n")
            case "500":
                self._send(500, _error("stumbled"))
            case "down":
                self._send(503, _error("down"))
            case "cut":
                whole = orjson.dumps(self._content(path, texts))
                self._send(200, whole[: len(whole) // 2])
            case "html":
                self._send(200, b"<html><body>502 Bad Gateway</body></html>", kind="text/html")
            case "huge":
                await self._pour()
            case "nothing":
                await asyncio.get_running_loop().create_future()
            case _:
                self._transport.abort()

    def _content(self, path: str, texts: list[str]) -> dict[str, Any]:
        content = _content(path, texts)
        return {**content, "padding": self._mock.padding} if self._mock.padding else content

    async def _pour(self) -> None:
        """A reply of `HUGE_BYTES`, for as long as the client reads."""
        assert self._transport is not None
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % HUGE_BYTES
        )
        for _ in range(HUGE_BYTES // CHUNK_BYTES):
            await self._room.wait()
            if self._transport.is_closing():
                return
            self._transport.write(b" " * CHUNK_BYTES)


def _error(text: str) -> bytes:
    return orjson.dumps({"error": {"message": text, "type": "test", "param": None, "code": None}})


def _number(text: str) -> int:
    return int(text.rpartition(" ")[2])


def _is_refused(text: str) -> bool:
    return text != PROMPT and _number(text) % REFUSED_EVERY == 0


def _content(path: str, texts: list[str]) -> dict[str, Any]:
    if path.endswith("embeddings"):
        read = sum(usage_of(text)[0] for text in texts)
        usage = {"prompt_tokens": read, "total_tokens": read}
        data = [{"object": "embedding", "index": n, "embedding": usage_of(text)} for n, text in enumerate(texts)]
        return {"object": "list", "data": data, "usage": usage}
    (text,) = texts
    read, written = usage_of(text)
    message = {"role": "assistant", "content": answer_of(text)}
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage}


async def _serve(mock: Mock) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(mock), "127.0.0.1", 0, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # The parent ends this process by closing its stdin, also when the parent is killed.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=0)
    uvloop.run(_serve(Mock(arguments.parse_args().seed)))
