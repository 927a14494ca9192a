"""The door of a batch service over HTTP, as the commands `run`, `watch`, `list` and `cancel` use it.

Uploads and downloads are streams: what is held in memory is one chunk. What can be said twice without harm is
tried again, within bounds: reads, and the making of a batch, which carries an idempotency key. An upload is
sent once.
"""

import asyncio
import hashlib
import os
import random
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from tidemill.client.runs.paths import InputFault
from tidemill.client.runs.plan import Bounds
from tidemill.schemas import ids
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX, LINE_BYTES_MAX
from tidemill.schemas.resources.batch import Batch, FileReceipt, Status
from tidemill.schemas.resources.error import ErrorEnvelope

CHUNK_BYTES = 256 << 10
TRIES_MAX = 14
"""Tries of one request, about half a minute with the pauses between them: a service that starts anew is back."""
PAUSE_SECONDS_MAX = 8.0
CONNECT_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 120.0
"""A connection on which nothing moves for so long is given up."""
ERROR_BYTES_MAX = 64 << 10
PAGE_LINES_MAX = 100
PAGES_MAX = 10_000
NEWEST_MAX = 1_000
"""Batches among which one is looked for by a part of its id."""
POLL_SECONDS_MIN = 0.1
POLL_SECONDS_MAX = 1.0
POLL_GROWTH = 1.3
DEFAULT_BOUNDS = Bounds(lines_max=50_000, bytes_max=209_715_200)
"""What one batch may hold, where the service does not say."""

Moved = Callable[[int], None]
"""Is told how many more bytes have gone by."""

T = TypeVar("T")


class Unreachable(Exception):
    """The service does not answer, or answers that it cannot work now (5xx)."""


class Refused(Exception):
    """The service answered that it will not do it.

    Attributes:
        status: The HTTP status, 4xx.
        code: The service's word for it, if it has one.
    """

    def __init__(self, status: int, message: str, code: str | None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Page(BaseModel):
    data: tuple[Batch, ...]
    has_more: bool


class Client:
    """One service and one key; an asynchronous context manager.

    Every method may raise `Unreachable` and `Refused`.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"}
        # Before the first answer a refused connection means a wrong address, and waiting is of no use.
        self._reached = False

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=SILENCE_SECONDS_MAX
        )
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def limits(self) -> Bounds:
        """Read what one batch may hold; a service that does not say so has OpenAI's limits."""
        try:
            answer = await self._tried(lambda: self._send("GET", "/limits"))
        except Refused as error:
            if error.status != 404:  # noqa: PLR2004 - there is no such route
                raise
            return DEFAULT_BOUNDS
        return Bounds(
            lines_max=int(answer["file_lines_max"]),
            bytes_max=int(answer["file_bytes_max"]),
            inputs_max=int(answer.get("embedding_inputs_max", EMBEDDING_INPUTS_MAX)),
            line_bytes_max=int(answer.get("line_bytes_max", LINE_BYTES_MAX)),
        )

    async def upload(
        self, path: Path, moved: Moved, *, span: tuple[int, int] | None = None, name: str | None = None
    ) -> str:
        """Upload a batch's input as it is read from disk; sent once.

        Args:
            path: The file.
            moved: Is told of each chunk.
            span: The bytes of it that are sent, the first and the one after the last; else all.
            name: Its name at the service; else that of the file.

        Returns:
            The file's id there.
        """
        with path.open("rb") as file, aiohttp.MultipartWriter("form-data") as form:
            form.append("batch").set_content_disposition("form-data", name="purpose")
            part = form.append(_chunks(file, moved, span), {"content-type": "application/jsonl"})
            part.set_content_disposition("form-data", name="file", filename=name or path.name)
            answer = await self._send("POST", "/files", data=form)
        return str(answer["id"])

    async def create(
        self, input_file_id: str, endpoint: str, window: str, metadata: dict[str, str], *, key: str
    ) -> Batch:
        """Make a batch of an uploaded file: one batch, also where an answer is lost and the request repeated.

        Args:
            input_file_id: The file.
            endpoint: What its lines ask for.
            window: How long the batch may take.
            metadata: Its pairs.
            key: The idempotency key.
        """
        body: dict[str, Any] = {"input_file_id": input_file_id, "endpoint": endpoint, "completion_window": window}
        body |= {"metadata": metadata} if metadata else {}
        return self._batch(await self.make("/batches", body, key=key))

    async def make(self, path: str, body: dict[str, Any], *, key: str | None = None) -> dict[str, Any]:
        """Make something under an idempotency key: one thing, also where the request is repeated.

        Args:
            path: Where.
            body: Of what.
            key: Requests of one key are one; by default no other request has it.
        """
        headers = {"idempotency-key": key or uuid.uuid4().hex}
        return await self._tried(lambda: self._send("POST", path, json=body, headers=headers))

    async def cancel(self, batch_id: str) -> Batch:
        """Ask for a batch to be cancelled; asking twice does no harm."""
        return self._batch(await self._tried(lambda: self._send("POST", f"/batches/{batch_id}/cancel")))

    async def batch(self, batch_id: str) -> Batch:
        """Read a batch."""
        return self._batch(await self._tried(lambda: self._send("GET", f"/batches/{batch_id}")))

    async def terminal(self, batch_id: str, seen: Callable[[Batch], None]) -> Batch:
        """Look at a batch until nothing changes any more; its deadline is the bound.

        Args:
            batch_id: The batch.
            seen: Takes what each look shows.
        """
        pause = POLL_SECONDS_MIN
        while True:
            batch = await self.batch(batch_id)
            seen(batch)
            if batch.status.is_terminal:
                return batch
            await asyncio.sleep(pause)
            pause = min(POLL_SECONDS_MAX, pause * POLL_GROWTH)

    async def errors(self, batch: Batch) -> dict[str, Any] | None:
        """The errors of a batch that is over, by code; None where it has none, or the service does not tell."""
        if batch.status is Status.COMPLETED and not batch.request_counts.failed:
            return None
        try:
            return await self._tried(lambda: self._send("GET", f"/batches/{batch.id}/errors"))
        except Refused:
            return None

    async def find(self, text: str) -> str:
        """The id of a batch that is named by its first or last characters, among the newest `NEWEST_MAX`.

        Raises:
            InputFault: There is no such batch, or more than one.
        """
        if not ids.is_part_of_batch_id(text):
            return text
        found = [batch.id async for batch in self.batches(limit=NEWEST_MAX) if ids.names_batch(text, batch.id)]
        if len(found) != 1:
            which = f"{len(found)} batches" if found else f"none of the newest {NEWEST_MAX:,} batches"
            raise InputFault(f"{text}: {which} can be meant; `tidemill list --json` shows whole ids")
        return found[0]

    async def batches(self, *, limit: int) -> AsyncIterator[Batch]:
        """Read the newest batches, the newest first.

        Args:
            limit: How many at most.
        """
        after: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            params = {"limit": str(min(limit, PAGE_LINES_MAX)), **after}
            page = _Page.model_validate(
                await self._tried(lambda params=params: self._send("GET", "/batches", params=params))  # type: ignore[misc]
            )
            for batch in page.data[:limit]:
                yield batch
            limit -= len(page.data)
            if not page.has_more or not page.data or limit <= 0:
                return
            after = {"after": page.data[-1].id}

    async def download(self, file_id: str, target: Path, moved: Moved) -> FileReceipt:
        """Fetch a file's content; `target` has all of it or is left as it was.

        A transfer that breaks off goes on where it broke, where the service can do that.

        Args:
            file_id: The file.
            target: Where to put it; it is replaced in one step. A file of the same folder is used on the way.
            moved: Is told of each chunk; a negative number takes back what has to be fetched anew.
        """
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with partial.open("w+b") as file:
                transfer = _Transfer(file, moved)
                await self._tried(lambda: self._fetch(f"/files/{file_id}/content", transfer))
                # A journal that says that the file is here must not outlive it.
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return transfer.receipt

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make something; sent once."""
        return await self._send("POST", path, json=body)

    async def delete(self, path: str) -> dict[str, Any]:
        """Delete something, which does no harm the second time."""
        return await self._tried(lambda: self._send("DELETE", path))

    async def pages(self, path: str, params: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Read the objects of a list, page by page.

        Args:
            path: Where the list is.
            params: What of it is wanted.
        """
        after: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            query = {"limit": str(PAGE_LINES_MAX), **params, **after}
            page = await self._tried(lambda query=query: self._send("GET", path, params=query))  # type: ignore[misc]
            for found in page["data"]:
                yield found
            if not page["has_more"] or not page["last_id"]:
                return
            after = {"after": str(page["last_id"])}

    def _batch(self, answer: dict[str, Any]) -> Batch:
        try:
            return Batch.model_validate(answer)
        except ValidationError as error:
            raise Unreachable(f"{self._base_url} does not speak the Batch API") from error

    async def _send(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            async with self._session.request(method, self._base_url + path, **options) as answer:
                self._reached = True
                if not answer.ok:
                    raise await _error(answer)
                content = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._unreachable(error) from error
        if not isinstance(content, dict):
            raise Unreachable(f"{self._base_url} does not speak the Batch API")
        return content

    async def _fetch(self, path: str, transfer: "_Transfer") -> None:
        # Compressed bytes could not be gone on with in the middle.
        headers = {"accept-encoding": "identity"}
        if transfer.size:
            headers["range"] = f"bytes={transfer.size}-"
        try:
            async with self._session.get(self._base_url + path, headers=headers) as answer:
                self._reached = True
                if not answer.ok:
                    raise await _error(answer)
                if answer.status != 206:  # noqa: PLR2004 - partial content
                    transfer.restart()
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    transfer.take(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        """Why there was no answer, in plain words."""
        url = self._base_url
        match error:
            case aiohttp.InvalidURL():
                text = f"{url} is no address of a service"
            case aiohttp.ClientConnectorDNSError():
                text = f"the host of {url} is not known"
            case aiohttp.ClientConnectorCertificateError():
                text = f"the certificate of {url} is not trusted; SSL_CERT_FILE may name who signed it"
            case aiohttp.ClientSSLError():
                text = f"what listens at {url} does not speak TLS as it should; without TLS it is http://…"
            case aiohttp.ClientConnectorError():
                number = error.os_error.errno
                text = f"no service answers at {url}: {os.strerror(number) if number else 'no connection'}"
            case TimeoutError():
                text = f"{url} does not answer in time"
            case aiohttp.ClientError():
                text = f"the connection to {url} broke off"
            case _:
                text = f"{url} does not speak the Batch API"
        return Unreachable(text)

    async def _tried(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send until there is an answer; a refusal is one."""
        for tried in range(TRIES_MAX):
            try:
                return await send()
            except Unreachable:
                if not self._reached or tried == TRIES_MAX - 1:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1) * min(PAUSE_SECONDS_MAX, 0.25 * 2**tried))  # noqa: S311
        raise AssertionError("the last try returns or raises")


class _Transfer:
    """A download on its way: the bytes so far, in a file, and their hash."""

    def __init__(self, file: BinaryIO, moved: Moved) -> None:
        self._file = file
        self._moved = moved
        self._hash = hashlib.sha256()
        self._lines = 0
        self.size = 0

    @property
    def receipt(self) -> FileReceipt:
        return FileReceipt(lines=self._lines, bytes=self.size, sha256=self._hash.hexdigest())

    def take(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self._lines += chunk.count(b"\n")
        self.size += len(chunk)
        self._moved(len(chunk))

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._moved(-self.size)
        self._hash, self._lines, self.size = hashlib.sha256(), 0, 0


async def _chunks(file: BinaryIO, moved: Moved, span: tuple[int, int] | None) -> AsyncIterator[bytes]:
    start, end = span or (0, sys.maxsize)
    file.seek(start)
    while chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, end - file.tell())):
        yield chunk
        moved(len(chunk))


async def _error(answer: aiohttp.ClientResponse) -> Exception:
    """Turn an answer that is an error into the exception that says it."""
    body = await answer.content.read(ERROR_BYTES_MAX)
    try:
        error = ErrorEnvelope.model_validate_json(body).error
        message, code = error.message, error.code
    except ValidationError:
        code, message = None, f"{answer.reason or 'error'} ({answer.url.path})"
    # A 429 that says when to come back may be asked again; one of a full project is known to last.
    is_busy = answer.status == 429 and "retry-after" in answer.headers  # noqa: PLR2004
    if is_busy or answer.status >= 500:  # noqa: PLR2004 - the service's own fault
        return Unreachable(f"the service cannot do it now: {answer.status} {message}")
    return Refused(answer.status, message, code)
