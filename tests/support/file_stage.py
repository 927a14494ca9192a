"""Ingest's stage of files on a store in a folder; facts and requests are collected instead of sent."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable

from support.catalog import fixed_catalog

from tidemill.configuration.settings import Settings
from tidemill.ingest.files.packing import RequestRecord
from tidemill.ingest.files.stage import FileIngest
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import Accepted, BatchCreated, InputRef, Rejected
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.storage.directory import DirectoryStore

BACKEND = {"backends": [{"url": "http://127.0.0.1:9/v1"}]}
URL = "/v1/chat/completions"
MESSAGES = "/v1/messages"
NOW = 1_800_000_000


def input_lines(count: int, *models: str) -> bytes:
    """A file without fault; the lines name the models in turn."""
    line = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"%b","messages":[]}}\n'
    names = [model.encode() for model in models or ("m",)]
    return b"".join(line % (number, names[number % len(names)]) for number in range(count))


def created(batch_id: str, key: str | None, size: int, endpoint: str = URL) -> BatchCreated:
    """The command for a batch."""
    batch = Batch(
        id=batch_id,
        endpoint=endpoint,
        input_file_id="file-x",
        completion_window="24h",
        status=Status.VALIDATING,
        created_at=NOW,
        expires_at=NOW + 86_400,
    )
    return BatchCreated(project="default", batch=batch, input=key and InputRef(key=key, bytes=size))


class Collected:
    """A request producer that keeps its records; it can fail, or wait."""

    def __init__(self) -> None:
        self.facts: list[Accepted | Rejected] = []
        self.records: list[tuple[str, RequestRecord]] = []
        self.refused: dict[int, dict[str, object]] = {}
        self.begun: set[str] = set()
        self.failures = 0
        self.gate: Callable[[RequestRecord], asyncio.Future[None] | None] = lambda _: None

    async def send_fact(self, fact: Accepted | Rejected) -> None:
        """Keep the fact, unless a failure is due."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        self.facts.append(fact)

    async def begin(self, batch_id: str, project: str) -> None:
        """Keep the batch: its results may be sealed from now on."""
        del project
        self.begun.add(batch_id)

    async def refuse(self, batch_id: str, marks: list[LineMark], value: bytes, *, model: str) -> None:
        """Keep the error lines by their indices."""
        assert (self.begun, model) == ({batch_id}, "m")
        texts = map(json.loads, value.splitlines())
        self.refused |= dict(zip((mark.index for mark in marks if mark.failed), texts, strict=True))

    async def publish(self, records: AsyncIterable[RequestRecord]) -> None:
        """Keep the records."""
        async for record in records:
            self.records.append((record.model, record))
            if (wait := self.gate(record)) is not None:
                await wait

    def lines(self, batch_id: str) -> bytes:
        """The published lines of a batch, in order."""
        found = {record.head.first: record.value for _, record in self.records if record.head.batch_id == batch_id}
        return b"".join(found[first] + b"\n" for first in sorted(found))


class Here:
    """A stage with its dependencies."""

    def __init__(self, store: DirectoryStore, **settings: int) -> None:
        self.now = float(NOW)
        self.store = store
        self.requests = Collected()
        endpoints = {"endpoints": [URL, MESSAGES]}
        models = {"m": BACKEND | endpoints, "n": BACKEND | endpoints | {"aliases": ["also-n"]}, "third": BACKEND}
        given = Settings(models=models, **settings)
        self.catalog = fixed_catalog(given.servers, given.models)
        self.stage = FileIngest(
            given,
            catalog=self.catalog,
            store=store,
            requests=self.requests,
            clock=lambda: self.now,
        )

    async def batch(self, batch_id: str, data: bytes, endpoint: str = URL) -> BatchCreated:
        """Put a file into the store, and give the command for it."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        size = await self.store.write(f"files/{batch_id}", chunks())
        return created(batch_id, f"files/{batch_id}", size, endpoint)
