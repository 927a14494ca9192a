"""Requests to the batch service: authentication, timeouts, retries, and errors in plain words."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Self, TypeVar

import aiohttp
from pydantic import ValidationError

from tidemill.bounded_dict import BoundedDict
from tidemill.client.errors import COMMANDS, NoSpace, OtherService, Refused, Unreachable, Wording
from tidemill.client.http.answer import Answer
from tidemill.configuration.security import no_connection
from tidemill.retrying import pause_seconds
from tidemill.schemas import UNREADABLE
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.resources.error import ErrorEnvelope

TRIES_MAX = 14
"""Attempts of one request, over about half a minute: enough for a service to restart."""
PAUSE_SECONDS_MAX = 8.0
CONNECT_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 120.0
"""Longest time without a byte on a connection."""
ERROR_BYTES_MAX = 64 << 10
ROUTES_MAX = 1_000
"""Methods and paths remembered for their good answers; the one unused for longest is forgotten first."""

T = TypeVar("T")


class Connection:
    """Sends requests to one service with one key; an asynchronous context manager.

    Every method may raise `Unreachable`, `Refused` and `OtherService`.
    """

    def __init__(self, base_url: str, api_key: str, wording: Wording = COMMANDS) -> None:
        self.wording = wording
        self.base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"}
        # Until the first answer a refused connection means a wrong address: a retry would only delay the message.
        self._has_answered = False
        self._well: BoundedDict[tuple[str, str], None] = BoundedDict(ROUTES_MAX)
        """Methods and paths that have given a JSON object: another answer is that of a proxy, and passes."""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=SILENCE_SECONDS_MAX
        )
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request once, and return the JSON object of the answer."""
        async with self.opened(method, path, **options) as answer:
            try:
                content = await answer.json(content_type=None, loads=lambda text: _parsed(text, answer))
            except UNREADABLE as error:
                if (await answer.read()).lstrip().startswith(b"{"):
                    raise self.unreachable(error) from error
                content = None
            if not isinstance(content, Answer):
                raise self._other_service(answer)
            self._well[answer.method, answer.url.path] = None
            return content

    async def send_retrying(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request that is safe to repeat; see `retrying`."""
        return await self.retrying(lambda: self.send(method, path, **options))

    @asynccontextmanager
    async def opened(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request once; yields the answer before its body is read."""
        try:
            async with self._session.request(method, self.base_url + path, **options) as answer:
                self._has_answered = True
                if not answer.ok:
                    raise await self._error(answer)
                yield answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.unreachable(error) from error

    async def retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an attempt until the service answers, at most `TRIES_MAX` times, with jittered pauses.

        A full disk ends it at once: a repeated upload would only send the same bytes again.
        """
        failures = 0
        while True:
            try:
                return await attempt()
            except (NoSpace, OtherService, Refused) as error:
                error.may_have_happened |= failures > 0
                raise
            except Unreachable:
                failures += 1
                if not self._has_answered or failures == TRIES_MAX:
                    raise
            await asyncio.sleep(pause_seconds(failures - 1, longest=PAUSE_SECONDS_MAX))

    def unreachable(self, error: Exception) -> Unreachable:
        """Explain why there is no answer, and what to do."""
        url = self.base_url
        match error:
            case aiohttp.InvalidURL():
                text = f"{url} is not a valid address; expected http://HOST:PORT/v1"
            case aiohttp.ClientConnectorDNSError():
                text = (
                    f"the host name in {url} does not resolve; check {self.wording.base_url} or TIDEMILL_BASE_URL"
                )
            case aiohttp.ClientConnectorCertificateError():
                why = no_connection(error.certificate_error, fix="; set SSL_CERT_FILE to the CA that signed it")
                text = f"the service at {url} is not used: {why}"
            case aiohttp.ClientSSLError():
                text = f"{url} does not speak TLS; without TLS the address begins with http://"
            case aiohttp.ClientConnectorError():
                why = no_connection(error.os_error)
                text = f"no service answers at {url}: {why}; check the address, and that it runs"
            case TimeoutError():
                text = f"the service at {url} does not answer in time; try again later"
            case _:
                text = f"the connection to {url} broke off; try again"
        return Unreachable(text)

    def _other_service(self, answer: aiohttp.ClientResponse) -> OtherService | Unreachable:
        """The exception for an answer that is none of the Batch API."""
        why = f"{answer.status} at {answer.url.path}{', without a JSON object' if answer.ok else ''}"
        if (answer.method, answer.url.path) in self._well:
            return Unreachable(f"the service is unavailable: {why}")
        return OtherService(answer.status, str(answer.url.origin()), why)

    async def _error(self, answer: aiohttp.ClientResponse) -> Exception:
        """The exception for an answer with an error status."""
        body = await answer.content.read(ERROR_BYTES_MAX)
        try:
            error = ErrorEnvelope.model_validate_json(body).error
            message, code = error.message, error.code
            if answer.status == 400 and error.param and error.param not in message:  # noqa: PLR2004
                message = f"{message} ({error.param})"
        except ValidationError:
            if answer.status in {404, 405} and not answer.history:
                return self._other_service(answer)
            said = server_error.read(body).message or answer.reason or "error"
            code, message = None, f"{said} ({answer.url.path})"
        # A 429 with Retry-After passes by itself; one without it means that a quota is used up.
        is_busy = answer.status == 429 and "retry-after" in answer.headers  # noqa: PLR2004
        is_lasting = answer.headers.get("x-should-retry") == "false"
        if is_busy or (answer.status >= 500 and not is_lasting):  # noqa: PLR2004 - a fault of the service
            kind = NoSpace if answer.status == HTTPStatus.INSUFFICIENT_STORAGE else Unreachable
            return kind(f"the service is unavailable: {answer.status} {message}")
        return Refused(answer.status, message, code)


def _parsed(text: str, answer: aiohttp.ClientResponse) -> Any:
    place = answer.status, str(answer.url.origin()), answer.url.path
    return json.loads(text, object_hook=lambda fields: Answer(fields, *place))
