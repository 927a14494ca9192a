"""Whether a call found no such endpoint: a chat model's server that is asked for embeddings, for example.

Such an answer (404, or 501) looks like that of a server which is not the right one, or does not know the model any
more, and for these a line waits until somebody has mended it. The two are told apart by asking the server for its
list of models: one that lists the model is the right one and takes our key, so what it lacks is the endpoint. No
waiting mends that, and lines that wait for it would be in the way of all others.
"""

import asyncio
from typing import Final

from tidemill.processors.call import Answer
from tidemill.processors.fleet import NEVER, Backend, Fleet
from tidemill.processors.lookout import Getter
from tidemill.schemas import served

STATUSES: Final = frozenset({404, 501})
LISTED_SECONDS: Final = 5.0
"""How long a list is believed: each line that finds no endpoint asks for it."""
LACKING_SECONDS: Final = 60.0
"""How long it is remembered that a backend lacks an endpoint, while the model's other backends are tried."""
REPLY_SECONDS_MAX: Final = 2.0
REPLY_BYTES_MAX: Final = 1 << 20


class Menu:
    """What the backends of one model have shown to lack."""

    def __init__(self, model: str, fleet: Fleet, getter: Getter) -> None:
        """Know nothing.

        Args:
            model: Its name, as its backends list it.
            fleet: Its backends.
            getter: The HTTP client.
        """
        self._model = model
        self._fleet = fleet
        self._getter = getter
        self._asking = asyncio.Lock()
        self._listed: dict[Backend, tuple[float, bool]] = {}
        """When a backend was asked last, and whether it listed the model."""
        self._lacking: dict[tuple[Backend, str], float] = {}

    async def lacks(self, endpoint: str, backend: Backend) -> bool:
        """A call was answered there as if there was no such endpoint: whether no backend of the model has it.

        A backend that gets no more calls is not counted. Never raises.

        Args:
            endpoint: What the line asked for, like `/v1/embeddings`.
            backend: Who answered.
        """
        if not await self._lists(backend):
            return False
        now = asyncio.get_running_loop().time()
        self._lacking[backend, endpoint] = now
        return all(
            now - self._lacking.get((other, endpoint), NEVER) <= LACKING_SECONDS
            for other in self._fleet.backends
            if not other.drain
        )

    async def _lists(self, backend: Backend) -> bool:
        # Lines that fail together wait for one answer.
        async with self._asking:
            loop = asyncio.get_running_loop()
            asked_at, is_listed = self._listed.get(backend, (NEVER, False))
            if loop.time() - asked_at > LISTED_SECONDS:
                outcome = await self._getter.get(
                    f"{backend.base}/models", backend.headers, REPLY_SECONDS_MAX, REPLY_BYTES_MAX
                )
                names = served.names(outcome.body) if isinstance(outcome, Answer) else None
                is_listed = self._model in (names or ())
                self._listed[backend] = loop.time(), is_listed
            return is_listed
