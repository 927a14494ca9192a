"""How batches delay the people who share a real server with them: a table like that of `limits.interactive`.

`make interactive SERVER=http://127.0.0.1:8000/v1 MODEL=llama` runs `tidemill up` beside a server that is already
there, like vLLM, and changes the server's settings from row to row while one batch runs. The server must have no
other clients. People's requests come at random (Poisson); this process measures their times, and reads the
throughput of lines from the server's metrics.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from support.beside import quantile
from support.stack import KEY, Stack

from tidemill.client.http.client import Client
from tidemill.client.http.transfers import upload

SAMPLE_SECONDS: Final = 0.1
WORDS: Final = 30_000
METRICS: Final = {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total"}
IDLE: Final = {"idle": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}
"""A model without lines: without any, the service would serve the demo's."""
CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of the measurement; lengths are tokens, distributed evenly from half to 1.5 times these."""

    url: str
    model: str
    people: float
    """Requests of people a second."""
    prompt: int
    people_output: int
    line_output: int
    calls_max: int
    seconds: float
    settle_seconds: float
    targets: tuple[int, ...]
    fixed: tuple[int, ...]
    lines: int

    def request(self, chance: random.Random, output: int, **more: object) -> dict[str, object]:
        """A body with a unique prompt, and an answer of known length."""
        words = (f"w{chance.randrange(3, WORDS)}" for _ in range(_about(chance, self.prompt)))
        messages = [{"role": "user", "content": " ".join(words)}]
        tokens = _about(chance, output)
        return {"model": self.model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, **more}


@dataclass
class Seen:
    """The measurements of one row; seconds, and tokens."""

    first: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    people_there: list[int] = field(default_factory=list)
    rate: float = 0.0

    def row(self, name: str) -> str:
        """Cells of the table."""
        first = self.first or [0.0]
        calls = fmean(self.running) + fmean(self.waiting) - fmean(self.people_there)
        times = " | ".join(f"{1000 * quantile(first, part):.0f} ms" for part in (0.5, 0.99))
        full = 100 * fmean(number > 0 for number in self.waiting)
        return f"| {name} | {times} | {full:.0f} % | {self.rate:.0f} | {calls:.0f} | {len(self.first)} |"


class Server:
    """The real server, and the people there."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._http = http
        self._chance = random.Random("people")
        self._root = plan.url.removesuffix("/v1")
        self._there: set[asyncio.Task[None]] = set()
        self._tokens_of_people = 0

    async def measure(self, *, people: float) -> Seen:
        """Send requests of people at this rate, at first without measuring."""
        await self._come(Seen(), people, self._plan.settle_seconds)
        seen = Seen()
        before, began = await self._tokens_of_lines(), time.monotonic()
        await self._come(seen, people, self._plan.seconds)
        seen.rate = (await self._tokens_of_lines() - before) / (time.monotonic() - began)
        return seen

    async def leave(self) -> None:
        """Wait for the last answers."""
        await asyncio.gather(*self._there)

    async def _come(self, seen: Seen, people: float, seconds: float) -> None:
        end = time.monotonic() + seconds
        sampling = asyncio.create_task(self._sample(seen))
        while (now := time.monotonic()) < end:
            pause = self._chance.expovariate(people) if people else seconds
            await asyncio.sleep(min(pause, end - now))
            if people and time.monotonic() < end:
                task = asyncio.create_task(self._ask(seen))
                self._there.add(task)
                task.add_done_callback(self._there.discard)
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling

    async def _ask(self, seen: Seen) -> None:
        body = self._plan.request(self._chance, self._plan.people_output, stream=True)
        began = time.monotonic()
        is_first = True
        async with self._http.post(f"{self._root}{CHAT}", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                if json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    if is_first:
                        seen.first.append(time.monotonic() - began)
                        is_first = False
                    self._tokens_of_people += 1

    async def _sample(self, seen: Seen) -> None:
        while True:
            found = await self._metrics()
            seen.waiting.append(found["num_requests_waiting"])
            seen.running.append(found["num_requests_running"])
            seen.people_there.append(len(self._there))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _tokens_of_lines(self) -> float:
        return (await self._metrics())["generation_tokens_total"] - self._tokens_of_people

    async def _metrics(self) -> dict[str, float]:
        async with self._http.get(f"{self._root}/metrics") as answer:
            page = await answer.text()
        samples = (one for family in text_string_to_metric_families(page) for one in family.samples)
        return {one.name.removeprefix("vllm:"): one.value for one in samples if one.name in METRICS}


class Service:
    """`tidemill up` in a folder of its own, with the server in its catalog."""

    def __init__(self, folder: Path) -> None:
        self._stack = Stack(folder, IDLE)
        self.base_url = ""

    @contextmanager
    def up(self, plan: Plan) -> Iterator[None]:
        """Start it, and stop it at the end."""
        with self._stack:
            self.base_url = self._stack.api
            self.client("servers", "add", "real", f"url={plan.url}", f"max_in_flight={plan.calls_max}")
            self.client("models", "add", plan.model, 'servers=["real"]')
            yield

    def set(self, **settings: object) -> None:
        """Change settings of the server; None for the default."""
        words = [f"{name}=" + ("" if value is None else str(value)) for name, value in settings.items()]
        self.client("servers", "set", "real", *words)

    def client(self, *words: str) -> None:
        """Run a command of the client."""
        command = [sys.executable, "-P", "-m", "tidemill", *words, "--data", str(self._stack.data)]
        subprocess.run(command, env=self._stack.environ_of_all, stdout=subprocess.DEVNULL, check=True)


def write(plan: Plan, path: Path) -> None:
    """The lines of the batch."""
    chance = random.Random("lines")
    with path.open("w") as file:
        for number in range(plan.lines):
            body = plan.request(chance, plan.line_output)
            line = {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}
            file.write(json.dumps(line) + "\n")


def rows(plan: Plan) -> Iterable[tuple[str, dict[str, object], float]]:
    """The rows measured beside a batch: name, the server's settings, and requests of people a second."""
    yield "no headroom", {"headroom": None}, plan.people
    yield "`headroom = true`", {"headroom": "true"}, plan.people
    for target in plan.targets:
        yield f"`headroom = {{ ttft_ms = {target} }}`", {"headroom": f"{{ttft_ms={target}}}"}, plan.people
    for calls in plan.fixed:
        yield f"`max_in_flight = {calls}`", {"headroom": None, "max_in_flight": calls}, plan.people
    yield "no people, no headroom", {"headroom": None, "max_in_flight": plan.calls_max}, 0.0
    yield "no people, `headroom = true`", {"headroom": "true"}, 0.0


async def table(plan: Plan, say: Callable[[str], None]) -> None:
    """Measure all rows."""
    say("| | p50 | p99 | samples with waiting requests | tokens of lines a second | calls in flight | people |")
    say("|---" * 7 + "|")
    async with _server(plan) as server:
        alone = await server.measure(people=plan.people)
        await server.leave()
        say(alone.row("people alone"))
        with tempfile.TemporaryDirectory(prefix="tidemill-real-") as folder:
            write(plan, path := Path(folder) / "lines.jsonl")
            service = Service(Path(folder) / "data")
            with service.up(plan):
                async with Client(service.base_url, KEY) as client:
                    file_id = await upload(client, path, lambda _: None)
                    batch = await client.create(file_id, CHAT, "24h", key="real")
                    for name, settings, people in rows(plan):
                        service.set(**settings)
                        seen = await server.measure(people=people)
                        await server.leave()
                        say(seen.row(name))
                    await client.cancel(batch.id)


@asynccontextmanager
async def _server(plan: Plan) -> AsyncIterator[Server]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Server(plan, http)


def _about(chance: random.Random, number: int) -> int:
    return round(number * chance.uniform(0.5, 1.5))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--people", type=float, default=4.0)
    parser.add_argument("--prompt", type=int, default=150)
    parser.add_argument("--people-output", type=int, default=400)
    parser.add_argument("--line-output", type=int, default=400)
    parser.add_argument("--calls-max", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--settle-seconds", type=float, default=30.0)
    parser.add_argument("--targets", type=_numbers, default=(60,))
    parser.add_argument("--fixed", type=_numbers, default=())
    parser.add_argument("--lines", type=int, default=50_000)
    plan = Plan(**vars(parser.parse_args()))
    asyncio.run(table(plan, lambda line: print(line, flush=True)))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
