"""A dispatcher with a scripted backend and a log whose appends a test can hold back."""

import asyncio
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from support.servers import backend
from support.upstreams import Upstream
from support.waiting import until

from tidemill.processors.backends.breaker import Pauses
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.calls.retry import Policy
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.joined.joiner import Joiner
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.memory_budget import LINES_BYTES_MAX, LineBudget
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.processors.scheduling.prefix_groups import Prefixes
from tidemill.schemas.endpoints import PROMPT
from tidemill.schemas.log import codec
from tidemill.schemas.resources.batch import Status
from tidemill.storage.directory import DirectoryStore

QUICK = Policy(
    wait_seconds_base=0.0001,
    wait_seconds_max=0.001,
    spread_seconds_min=0.0,
    probe_seconds_min=0.001,
)
PAUSES = Pauses(base=0.0001, longest=0.001, access=0.0001, probe=1.0)
FAULTS = (
    FailureKind.READ,
    FailureKind.CONNECT,
    Answer(500, b"{}"),
    Answer(503, b""),
    Answer(200, b"{"),
    Answer(429, b"{}"),
)


class Inference(Upstream):
    """An `Upstream` that lets each call wait for some turns of the event loop, and counts."""

    def __init__(self, rng: random.Random, faults: float = 0.0) -> None:
        self.calls: Counter[bytes] = Counter()
        self.good: Counter[bytes] = Counter()
        self.in_flight = 0
        self.in_flight_max = 0
        self.names: Counter[str] = Counter()
        self.seconds: set[float] = set()
        """What calls may take."""
        self.reply = b'{"data":[{"index":0}]}'
        self.is_bad = lambda _body: False
        self.gate = asyncio.Event()
        self.gate.set()
        self._rng = rng
        self._faults = faults
        self.on_call = lambda: None

    async def post(
        self, url: str, headers: dict[str, str], body: bytes, seconds: float, more: bytes = b""
    ) -> Answer | FailureKind:
        del url, headers
        self.seconds.add(seconds)
        # A health probe has no line.
        if is_line := b'"b":' in body:
            self.names[more] += 1
            self.calls[body] += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        self.on_call()
        try:
            async with asyncio.timeout(seconds):
                await self.gate.wait()
            for _ in range(self._rng.randrange(4)):
                await asyncio.sleep(0)
        except TimeoutError:
            return FailureKind.TIMEOUT
        finally:
            self.in_flight -= 1
        if self._rng.random() < self._faults or self.is_bad(body):
            return self._rng.choice(FAULTS)
        if is_line:
            self.good[body] += 1
        return Answer(200, self.reply)

    def heal(self) -> None:
        """From now on each call is answered."""
        self._faults = 0.0

    async def close(self) -> None:
        """Nothing is open."""


class ArrayInference(Inference):
    """A backend that takes arrays; `calls` and `good` count inputs, and `sizes` calls by number of inputs."""

    def __init__(self, rng: random.Random, faults: float = 0.0) -> None:
        super().__init__(rng, faults)
        self.sizes: Counter[int] = Counter()
        self.answer: Callable[[list[str]], Answer | FailureKind | None] = lambda _: None
        """What the inputs of a call are answered with; None for well."""

    async def post(
        self, url: str, headers: dict[str, str], body: bytes, seconds: float, more: bytes = b""
    ) -> Answer | FailureKind:
        fields = orjson.loads(body)
        given = fields.get("input", fields.get("prompt"))
        inputs = given if isinstance(given, list) else [given]
        outcome = await super().post(url, headers, body, seconds, more)
        if inputs == [PROMPT]:
            return outcome
        self.sizes[len(inputs)] += 1
        for text in inputs:
            self.calls[text.encode()] += 1
        if outcome == Answer(200, self.reply):
            outcome = self.answer(inputs) or self._well(inputs)
        return outcome

    def _well(self, inputs: list[str]) -> Answer:
        for text in inputs:
            self.good[text.encode()] += 1
        items = [{"index": number, "embedding": text} for number, text in enumerate(inputs)]
        self._rng.shuffle(items)
        tokens = sum(map(len, inputs))
        return Answer(
            200, orjson.dumps({"data": items, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
        )


class Log:
    """An `Outbox` that appends after some turns of the event loop."""

    def __init__(self, rng: random.Random) -> None:
        self.lines: Counter[tuple[str, int]] = Counter()
        self.records = 0
        self.results: dict[tuple[str, int], bytes] = {}
        self.marks: dict[tuple[str, int], codec.LineMark] = {}
        self.failed: set[tuple[str, int]] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self._rng = rng

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        await self.gate.wait()
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
        self.records += 1
        for mark in codec.lines_marks(headers, len(value))[1]:
            self.lines[batch_id, mark.index] += 1
            self.marks[batch_id, mark.index] = mark
            self.results[batch_id, mark.index], value = value[: mark.size], value[mark.size :]
            if mark.failed:
                self.failed.add((batch_id, mark.index))


class Partition:
    """A partition handle that checks each acknowledgement against the log."""

    def __init__(self, log: Log) -> None:
        self.acked: list[int] = []
        self.records: list[tuple[str, int, int]] = []
        self.dropped: set[str] = set()
        self._log = log

    def ack(self, token: Any) -> None:
        assert token == len(self.acked), "an acknowledgement out of order"
        batch_id, first, lines = self.records[token]
        if batch_id not in self.dropped:
            for index in range(first, first + lines):
                assert self._log.lines[batch_id, index], "acknowledged before the log has its outcome"
        self.acked.append(token)

    def pause(self) -> None:
        """The window is not this test's matter."""

    def resume(self) -> None:
        """As above."""


def _line(batch_id: str, n: int) -> bytes:
    return b'{"custom_id":"%d","body":{"b":"%b","n":%d}}' % (n, batch_id.encode(), n)


def joinable(batch_id: str, n: int) -> bytes:
    """A line that goes with the others of its batch."""
    return b'{"custom_id":"%d","body":{"input":"%b %d"}}' % (n, batch_id.encode(), n)


class World:
    """A stage among them."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        faults: float = 0.0,
        limit: int = 4,
        policy: Policy = QUICK,
        buckets: tuple[TokenBucket, ...] = (),
        is_grouped: bool = False,
        memory: int = LINES_BYTES_MAX,
        budget: LineBudget | None = None,
        unacknowledged: int = 1,
        inputs_per_call: int = 1,
        grace: float = 600.0,
    ) -> None:
        self.folder = folder
        self.line = _line
        """What line `n` of a batch is."""
        self.url = "/v1/embeddings"
        self.validated = False
        """Whether batches have a schema, which a test writes to `folder`."""
        self.traceparent: str | None = None
        self.ahead = 0.0
        """Seconds by which the wall clock was set."""
        rng = random.Random(seed)
        self.inference = Inference(rng, faults) if inputs_per_call == 1 else ArrayInference(rng, faults)
        self.log = Log(rng)
        self.closed = ClosedBatches(grace_seconds=grace)
        store = DirectoryStore(folder)
        fleet = self.fleet = BackendPool(
            [
                backend(
                    url,
                    ConcurrencyLimit(limit),
                    pauses=PAUSES,
                    buckets=buckets,
                    calls_max=limit,
                    unacknowledged_max=unacknowledged,
                )
                for url in ("http://a", "http://b")
            ],
            calls_max=limit,
        )
        self.repeats_max = 0
        """The most calls that a kill would have repeated at any time."""
        self.inference.on_call = self._note
        caller = Caller(
            pool=fleet, endpoint_probe=EndpointProbe("m", fleet, self.inference), upstream=self.inference,
            store=store, forms=Forms(store, LineBudget()), clock=self.now, seconds_max=600,
        )  # fmt: skip
        services = Services(
            budget=budget or LineBudget(memory), outbox=self.log, store=store, closed=self.closed, clock=self.now,
            chance=rng.random,
        )  # fmt: skip
        self.stage = Dispatcher(
            caller,
            services,
            policy=policy,
            # Three groups, and lines that are in none.
            prefixes=Prefixes(lambda line: line.index % 4 or None, fleet.backends) if is_grouped else None,
            joiner=Joiner("m", inputs_per_call) if inputs_per_call > 1 else None,
        )
        self.assign()

    def drain_backends(self, *, is_drained: bool) -> None:
        """The settings of the servers change."""
        for one in self.fleet.backends:
            one.server.drain = is_drained
        self.stage.fill()

    def _note(self) -> None:
        self.repeats_max = max(self.repeats_max, self.stage.busy)

    def now(self) -> float:
        """Unix time as the process takes it."""
        return time.time() + self.ahead

    def assign(self) -> None:
        """A new window, as after an assignment."""
        self.tap = Partition(self.log)
        self.window = PartitionWindow(self.tap)
        self.stage.resume()

    def publish(
        self,
        batch_id: str,
        first: int,
        lines: int,
        seconds: float = 600,
        *,
        is_large: bool = False,
        project: str = "p",
    ) -> None:
        """A record arrives."""
        texts = [self.line(batch_id, n) for n in range(first, first + lines)]
        token = len(self.tap.records)
        self.tap.records.append((batch_id, first, lines))
        head = codec.RequestHead(
            batch_id=batch_id, project=project, first=first, deadline=int(time.time() + seconds), url=self.url,
            traceparent=self.traceparent, validated=self.validated,
        )  # fmt: skip
        if seconds <= 0:
            self.tap.dropped.add(batch_id)
        if is_large:
            (text,) = texts
            (self.folder / f"{batch_id}-{first}").write_bytes(text)
            head = dataclasses.replace(head, ref=codec.LineRef(f"{batch_id}-{first}", 0, len(text)))
            texts = [b""]
        self.stage.enqueue(self.window.admit(token, lines, 1), head, texts)

    def end(self, batch_id: str) -> None:
        """The log of batches says that one is cancelled."""
        self.tap.dropped.add(batch_id)
        self.closed.apply(batch_id, Status.CANCELLING)

    async def finish(self) -> None:
        """All records are acknowledged, and nothing is left."""
        await until(lambda: len(self.tap.acked) == len(self.tap.records) and not self.stage.busy, "all acks")
        assert self.stage.pending == 0
        await self.stage.close()
