"""Finds out whether a server lacks an endpoint, as a chat model's server lacks embeddings.

A 404 or 501 may also come from the wrong server, from one that no longer has the model, or because of an object
that the line names. So the probe requests the list of models, and posts an empty object to the endpoint. A server
that lists the model is the right one and accepts our key; one that has the endpoint answers with another status.
If it lacks the endpoint, waiting does not help, and the line ends.
"""

import asyncio
from typing import Final
from weakref import WeakKeyDictionary

from tidemill.processors.backends.backend import NEVER, Backend
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.client import HttpUpstream
from tidemill.schemas import served
from tidemill.schemas.endpoints import address

STATUSES: Final = frozenset({404, 501})
LISTED_SECONDS: Final = 5.0
"""How long a probe explains further 404s of its server, so that lines that fail together probe once."""
OTHERS_SECONDS: Final = 1.0
"""How long a probe that found an endpoint lacking speaks for a server that did not answer the line itself."""
LACKING_SECONDS: Final = 60.0
"""How long a server is asked again in place of a line that tries it, before a line ends."""
REPLY_SECONDS_MAX: Final = 2.0
REPLY_BYTES_MAX: Final = 1 << 20


class EndpointProbe:
    """Knows which endpoints the servers of one model lack."""

    def __init__(self, model: str, pool: BackendPool, client: HttpUpstream) -> None:
        """Send nothing yet; `model` is the name that the servers list."""
        self.model = model
        self._pool = pool
        self._client = client
        self._asking = asyncio.Lock()
        self._asked: WeakKeyDictionary[Backend, dict[str, tuple[float, bool]]] = WeakKeyDictionary()
        """By server and endpoint, the time of the last probe, and whether the endpoint was lacking."""
        self._lacking: WeakKeyDictionary[Backend, dict[str, float]] = WeakKeyDictionary()

    async def lacks(self, endpoint: str, backend: Backend) -> bool:
        """Whether every server of the model, except drained ones, lacks an endpoint; never raises.

        Args:
            endpoint: The path of the line, like `/v1/embeddings`.
            backend: The server that answered a call with one of `STATUSES`.
        """
        now = asyncio.get_running_loop().time()
        if not await self._lacks(endpoint, backend, now - LISTED_SECONDS):
            return False
        others = [other for other in self._pool.backends if other is not backend and not other.server.drain]
        if any(now - self._lacking.get(other, {}).get(endpoint, NEVER) > LACKING_SECONDS for other in others):
            return False
        # Each of them has lacked the endpoint, and may serve it now.
        for other in others:
            if not await self._lacks(endpoint, other, now - OTHERS_SECONDS):
                return False
        return True

    async def _lacks(self, endpoint: str, backend: Backend, since: float) -> bool:
        """Whether a server lacks an endpoint, by a probe that began at a time or later."""
        # Lines that fail together wait for one answer.
        async with self._asking:
            now = asyncio.get_running_loop().time()
            asked = self._asked.setdefault(backend, {})
            asked_at, is_lacking = asked.get(endpoint, (NEVER, False))
            if asked_at < since:
                is_lacking = await self._lists(backend) and await self._denies(endpoint, backend)
                asked[endpoint] = now, is_lacking
                self._lacking.setdefault(backend, {})[endpoint] = now if is_lacking else NEVER
            return is_lacking

    async def _lists(self, backend: Backend) -> bool:
        outcome = await self._client.get(
            f"{backend.base}/models", backend.server.options.headers, REPLY_SECONDS_MAX, REPLY_BYTES_MAX
        )
        names = served.names(outcome.body) if isinstance(outcome, Answer) else None
        return self.model in (names or ())

    async def _denies(self, endpoint: str, backend: Backend) -> bool:
        url = address(backend.base, endpoint)
        outcome = await self._client.post(url, backend.server.options.headers, b"{}", REPLY_SECONDS_MAX)
        if isinstance(outcome, FailureKind):
            return False
        if outcome.share is not None:
            outcome.share.close()
        return outcome.status in STATUSES
