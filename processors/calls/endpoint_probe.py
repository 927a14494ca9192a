"""Whether a call found no such endpoint: a chat model's server that is asked for embeddings, for example.

Such an answer (404, or 501) looks like that of a server which is not the right one, does not know the model any
more, or does not have something that the line names. So the server is asked for its list of models, and for an
answer of the endpoint to an empty object, which no server works on: one that lists the model is the right one and
takes our key, and one that knows the endpoint says what the object lacks. No waiting mends what is left, and lines
that wait for it would be in the way of all others.
"""

import asyncio
from typing import Final, Protocol

from tidemill.processors.backends.metrics_poller import Getter
from tidemill.processors.backends.pool import NEVER, Backend, BackendPool
from tidemill.processors.failures import Answer, Broken
from tidemill.schemas import served

STATUSES: Final = frozenset({404, 501})
LISTED_SECONDS: Final = 5.0
"""How long a list is believed: each line that finds no endpoint asks for it."""
LACKING_SECONDS: Final = 60.0
"""How long it is remembered that a backend lacks an endpoint, while the model's other backends are tried."""
REPLY_SECONDS_MAX: Final = 2.0
REPLY_BYTES_MAX: Final = 1 << 20


class Asker(Getter, Protocol):
    """What is needed of an HTTP client."""

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float
    ) -> Answer | Broken:
        """See `Upstream`."""
        ...


class EndpointProbe:
    """What the backends of one model have shown to lack."""

    def __init__(self, model: str, fleet: BackendPool, asker: Asker) -> None:
        """Know nothing.

        Args:
            model: Its name, as its backends list it.
            fleet: Its backends.
            asker: The HTTP client.
        """
        self.model = model
        self._fleet = fleet
        self._asker = asker
        self._asking = asyncio.Lock()
        self._asked: dict[tuple[Backend, str], tuple[float, bool]] = {}
        """When a backend was asked last for an endpoint, and whether it lacked it."""
        self._lacking: dict[tuple[Backend, str], float] = {}

    async def lacks(self, endpoint: str, backend: Backend) -> bool:
        """A call was answered there as if there was no such endpoint: whether no backend of the model has it.

        A backend that gets no more calls is not counted. Never raises.

        Args:
            endpoint: What the line asked for, like `/v1/embeddings`.
            backend: Who answered.
        """
        if not await self._lacks(endpoint, backend):
            return False
        now = asyncio.get_running_loop().time()
        self._lacking[backend, endpoint] = now
        return all(
            now - self._lacking.get((other, endpoint), NEVER) <= LACKING_SECONDS
            for other in self._fleet.backends
            if not other.drain
        )

    async def _lacks(self, endpoint: str, backend: Backend) -> bool:
        # Lines that fail together wait for one answer.
        async with self._asking:
            now = asyncio.get_running_loop().time()
            asked_at, is_lacking = self._asked.get((backend, endpoint), (NEVER, False))
            if now - asked_at > LISTED_SECONDS:
                is_lacking = await self._lists(backend) and await self._denies(endpoint, backend)
                self._asked[backend, endpoint] = now, is_lacking
            return is_lacking

    async def _lists(self, backend: Backend) -> bool:
        outcome = await self._asker.get(
            f"{backend.base}/models", backend.headers, REPLY_SECONDS_MAX, REPLY_BYTES_MAX
        )
        names = served.names(outcome.body) if isinstance(outcome, Answer) else None
        return self.model in (names or ())

    async def _denies(self, endpoint: str, backend: Backend) -> bool:
        url = backend.base + endpoint.removeprefix("/v1")
        outcome = await self._asker.post(url, backend.headers, b"{}", REPLY_SECONDS_MAX)
        if isinstance(outcome, Broken):
            return False
        if outcome.share is not None:
            outcome.share.close()
        return outcome.status in STATUSES
