"""A stage of one server on simulated time, with a fixed answer and a log that may be full."""

import asyncio
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import upstreams
from support.servers import backend as server_of_model
from support.simtime import SimulatedLoop

from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.processors.scheduling.stalls import CHECK_SECONDS
from tidemill.schemas.log import codec
from tidemill.schemas.ports import Store
from tidemill.storage.directory import DirectoryStore

SERVER = "http://a/v1"
WELL = Answer(200, b'{"data":[{"index":0,"embedding":[1]}]}')
LINES = 100


class Upstream(upstreams.Upstream):
    """A server that gives a fixed answer, or none."""

    def __init__(self) -> None:
        self.reply: Answer | FailureKind | None = WELL
        self.seconds = 0.5

    async def post(
        self, url: str, headers: dict[str, str], body: bytes, seconds: float, more: bytes = b""
    ) -> Answer | FailureKind:
        del url, headers, body, more

        if self.reply is None:
            await asyncio.sleep(seconds)
            return FailureKind.TIMEOUT
        await asyncio.sleep(self.seconds)
        return self.reply

    async def close(self) -> None: ...


class Handle:
    """A partition without checks."""

    def ack(self, token: Any) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Outbox:
    """A log that takes results, unless it is full."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:

        del batch_id, value, headers
        await self.room.wait()


class World:
    """A stage of one server, which collects the published reasons to wait."""

    def __init__(self, loop: SimulatedLoop, *, store: Store | None = None, **backend: Any) -> None:
        self.loop = loop
        self.upstream = Upstream()
        self.outbox = Outbox()
        self.budget = LineBudget()
        self.said: list[tuple[float, Any]] = []
        store = store or DirectoryStore(Path(tempfile.gettempdir()) / "unused")
        fleet = self.pool = BackendPool([server_of_model(SERVER, ConcurrencyLimit(8), **backend)], calls_max=8)
        caller = Caller(
            pool=fleet, endpoint_probe=EndpointProbe("m", fleet, self.upstream), upstream=self.upstream,
            store=store, forms=Forms(store, LineBudget()), clock=loop.now, seconds_max=30,
        )  # fmt: skip
        services = Services(
            budget=self.budget, outbox=self.outbox, store=store, closed=ClosedBatches(), clock=loop.now,
            chance=random.Random(1).random,
        )  # fmt: skip
        self.stage = Dispatcher(caller, services)
        self._window = PartitionWindow(Handle())
        self._tokens = 0

    def publish(self, batch_id: str, lines: int = LINES, url: str = "/v1/embeddings") -> None:
        texts = [b'{"custom_id":"%d","body":{"n":%d}}' % (n, n) for n in range(lines)]
        head = codec.RequestHead(
            batch_id=batch_id, project="p", first=0, deadline=int(self.loop.now()) + 86_400, url=url
        )
        self._tokens += 1
        self.stage.enqueue(self._window.admit(self._tokens, lines, 1), head, texts)

    def publish_large(self, batch_id: str, index: int) -> None:
        head = codec.RequestHead(
            batch_id=batch_id, project="p", first=index, deadline=int(self.loop.now()) + 86_400,
            url="/v1/embeddings", ref=codec.LineRef("files/gone", 0, 1 << 20),
        )  # fmt: skip
        self._tokens += 1
        self.stage.enqueue(self._window.admit(self._tokens, 1, 1), head, [b""])

    async def pass_(self, seconds: float) -> None:

        until = self.loop.time() + seconds
        while self.loop.time() < until:
            await asyncio.sleep(CHECK_SECONDS)
            self.said += [(self.loop.time(), fact) for fact in self.stage.stalls.check(self.loop.time())]

    def waits(self, batch_id: str) -> Any:
        """The latest reasons to wait of a batch."""
        return next((fact.waiting for _, fact in reversed(self.said) if fact.batch_id == batch_id), None)


def simulated(case: Callable[[SimulatedLoop], Any]) -> None:
    """Run a case to its end."""
    loop = SimulatedLoop()
    try:
        loop.run_until_complete(case(loop))
    finally:
        loop.close()
