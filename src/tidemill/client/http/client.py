"""The routes of the Batch API that the commands use.

Requests that are safe to repeat are retried: reads, and requests with an idempotency key.
"""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from tidemill.client.errors import OtherService, Refused, UsageError
from tidemill.client.http.answer import Answer
from tidemill.client.http.connection import Connection
from tidemill.schemas import ids
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX, LINE_BYTES_MAX
from tidemill.schemas.resources.batch import Batch, Status

BATCHES = "/batches"
PAGE_LINES_MAX = 100
PAGES_MAX = 10_000
NEWEST_MAX = 1_000
"""Batches that `find` searches for a part of an id."""
POLL_SECONDS_MIN = 0.1
POLL_SECONDS_MAX = 1.0
POLL_GROWTH = 1.3


NAMES = {"lines_max": "file_lines_max", "bytes_max": "file_bytes_max", "inputs_max": "embedding_inputs_max"}
"""Bounds with another name in the answer of the service."""


class Bounds(msgspec.Struct, frozen=True, rename=NAMES):
    """Limits of one batch; the defaults are those of OpenAI."""

    lines_max: int = 50_000
    bytes_max: int = 209_715_200
    inputs_max: int = EMBEDDING_INPUTS_MAX
    """Texts to embed, of all lines together."""
    line_bytes_max: int = LINE_BYTES_MAX
    usual_window: str = "24h"
    """The default completion window."""


class Sample(msgspec.Struct, frozen=True):
    """A line that failed."""

    message: str = ""


class Reason(msgspec.Struct, frozen=True):
    """Why lines failed."""

    code: str | None
    count: int
    status_code: int | None = None
    """HTTP status; None without an answer."""
    samples: tuple[Sample, ...] = ()

    @property
    def message(self) -> str:
        """A sample message."""
        return self.samples[0].message if self.samples else ""


class Report(msgspec.Struct, frozen=True):
    """The error report of a batch."""

    data: tuple[Reason, ...] = ()
    unfinished: int = 0
    """Lines for a rerun."""


SINGLE: Final = {"single": "true"}
"""The query of a list of batches for single requests alone, which other lists leave out."""


class Client(Connection):
    """Client of one service; see `Connection`."""

    async def limits(self) -> Bounds:
        """Read the limits of one batch; for a service without this route those of OpenAI."""
        try:
            return msgspec.convert(await self.send_retrying("GET", "/limits"), Bounds)
        except msgspec.ValidationError as error:
            raise OtherService(HTTPStatus.OK, self.base_url, "/limits has no limits") from error
        except (Refused, OtherService) as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return Bounds()

    async def create(self, input_file_id: str, endpoint: str, window: str, *, key: str, **fields: Any) -> Batch:
        """Create a batch with a completion window like `24h`; requests with the same key create one batch.

        Args:
            input_file_id: Id of the uploaded input.
            endpoint: Endpoint of all lines.
            window: The completion window.
            key: The idempotency key.
            fields: More fields of the body; those that are None or empty are left out.
        """
        body: dict[str, Any] = {"input_file_id": input_file_id, "endpoint": endpoint, "completion_window": window}
        body |= {name: value for name, value in fields.items() if value}
        return (await self.make(BATCHES, body, key=key)).read(Batch)

    async def make(self, path: str, body: dict[str, Any], *, key: str | None = None) -> Answer:
        """Create an object under an idempotency key, by default a new one."""
        headers = {"idempotency-key": key or uuid.uuid4().hex}
        return await self.send_retrying("POST", path, json=body, headers=headers)

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel a batch."""
        return (await self.send_retrying("POST", f"{BATCHES}/{batch_id}/cancel")).read(Batch)

    async def batch(self, batch_id: str) -> Batch:
        """Read a batch."""
        return (await self.send_retrying("GET", f"{BATCHES}/{batch_id}")).read(Batch)

    async def finished(self, batch_id: str, seen: Callable[[Batch], None]) -> Batch:
        """Poll a batch until its status is final, at the latest after its deadline; `seen` gets each state."""
        pause = POLL_SECONDS_MIN
        while True:
            batch = await self.batch(batch_id)
            seen(batch)
            if batch.status.is_terminal:
                return batch
            await asyncio.sleep(pause)
            pause = min(POLL_SECONDS_MAX, pause * POLL_GROWTH)

    async def errors(self, batch: Batch) -> Report:
        """The error report of a finished batch; empty without errors, or if the service has no such route."""
        if batch.status is Status.COMPLETED and not batch.request_counts.failed:
            return Report()
        try:
            return msgspec.convert(await self.send_retrying("GET", f"{BATCHES}/{batch.id}/errors"), Report)
        except (Refused, OtherService, msgspec.ValidationError):
            return Report()

    async def find(self, text: str) -> str:
        """Complete the id of a batch from its first or last characters, among the newest `NEWEST_MAX` batches.

        Raises:
            UsageError: No batch matches, or more than one.
        """
        if not ids.is_part_of_batch_id(text):
            return text
        found: list[str] = []
        kinds: tuple[dict[str, str], ...] = ({}, SINGLE)
        for params in kinds:
            pages = self.pages(BATCHES, params, limit=NEWEST_MAX)
            found = found or [str(each["id"]) async for each in pages if ids.names_batch(text, str(each["id"]))]
        if len(found) != 1:
            which = f"{len(found)} batches match" if found else f"no match among the newest {NEWEST_MAX:,} batches"
            raise UsageError(f"{text}: {which}; `tidemill list --json` shows complete ids")
        return found[0]

    async def batches(self, *, limit: int) -> AsyncIterator[Batch]:
        """Read up to `limit` batches, the newest first."""
        async for found in self.pages(BATCHES, {}, limit=limit):
            yield found.read(Batch)

    async def pages(
        self, path: str, params: Mapping[str, str], *, limit: int = sys.maxsize
    ) -> AsyncIterator[Answer]:
        """Read up to `limit` objects of a list, page by page; `params` are its filters."""
        query = {"limit": str(min(limit, PAGE_LINES_MAX)), **params}
        for _ in range(PAGES_MAX):
            page = await self.send_retrying("GET", path, params=query)
            data = page.objects("data")
            for found in data[:limit]:
                yield found
            limit -= len(data)
            if limit <= 0 or not page["has_more"] or not (last := page.get("last_id")):
                return
            query["after"] = str(last)
