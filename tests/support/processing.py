"""A process of processors on a real broker: lines go in by record, outcomes are collected as they arrive."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from support.backend import Backend
from support.catalog import change, set_up
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_model_topics, ensure_topics
from tidemill.kafka.connection import stop
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, Status

MAIN = """
import dataclasses, sys

from tidemill.configuration.settings import load
from tidemill.processors import app

app.NAME, *names = sys.argv[1:]
take_over = app.Processors.set_models


def only_own(processors, serving):
    models = {name: serving.models[name] for name in names if name in serving.models}
    by_model = {name: serving.by_model[name] for name in models}
    take_over(processors, dataclasses.replace(serving, models=models, by_model=by_model))


app.Processors.set_models = only_own
app.main(load())
"""
"""Several rigs share a broker, so each has a group of its own and works for its own models alone."""


class Process:
    """A process `tidemill processors`, which reports that it is ready as it would to its supervisor."""

    def __init__(self, environment: dict[str, str], models: Sequence[str]) -> None:
        self._ready, end = os.pipe()
        environment = {**os.environ, **environment, "TIDEMILL_NOTIFY_FD": str(end)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAIN, f"tidemill-processors-{models[0]}", *models],
            env=environment,
            pass_fds=[end],
        )
        os.close(end)
        os.set_blocking(self._ready, False)

    async def ready(self) -> Self:
        """Wait until it has its partitions."""
        await until(self._has_said_so, "the processors' readiness")
        return self

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS_MAX)

    def terminate(self) -> int:
        """Ask it to end; returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(WAIT_SECONDS_MAX)

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self.kill()
        os.close(self._ready)

    def _has_said_so(self) -> bool:
        assert self._process.poll() is None, "the process ended before it was ready"
        try:
            return b"ready" in os.read(self._ready, 4096)
        except BlockingIOError:
            return False


class Rig:
    """One model of its own, its topic, and the outcomes of its batches."""

    def __init__(self, kafka: str, settings: Settings, environment: dict[str, str]) -> None:
        self.settings = settings
        self.models = list(settings.models)
        self.model = self.models[0]
        self.store = Path(settings.data) / "store"
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}
        self.marks: dict[tuple[str, int], codec.LineMark] = {}
        self.times: Counter[tuple[str, int]] = Counter()
        self.refs: list[codec.LineRef] = []
        self._environment = environment
        self._processes: list[Process] = []
        self._producer = AIOKafkaProducer(bootstrap_servers=kafka)
        self._consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False)

    async def start(self) -> None:
        """Start to read new records."""
        await self._producer.start()
        await self._consumer.start()
        count = len(await self._producer.partitions_for(topics.OUTCOMES.name))
        partitions = [TopicPartition(topics.OUTCOMES.name, number) for number in range(count)]
        self._consumer.assign(partitions)
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            self._consumer.seek(partition, end)

    async def stop(self) -> None:
        """End the processes, then the clients."""
        for process in self._processes:
            process.close()
        await stop(self._producer)
        await stop(self._consumer)

    def process(self) -> Process:
        """Start a process."""
        self._processes.append(Process(self._environment, self.models))
        return self._processes[-1]

    async def send(
        self,
        value: bytes,
        headers: codec.Headers,
        key: str = "",
        *,
        express: bool = False,
        model: str | None = None,
    ) -> None:
        """Publish a record of requests."""
        name = model or self.model
        topic = topics.express(name) if express else topics.requests(name)
        await self._producer.send_and_wait(topic.name, value, key=key.encode(), headers=headers)

    async def batch(
        self,
        lines: int,
        *,
        pack: int = 8,
        same_key: int = 64,
        seconds: float = 600,
        url: str = "/v1/chat/completions",
        project: str = "p",
        express: bool = False,
        model: str | None = None,
    ) -> str:
        """Publish a batch whose line `n` says `<batch> n`; returns its id.

        `same_key` lines in a row have the same key, so they are in one partition.
        """
        batch_id = ids.new_batch_id()
        await self.say(batch_id, Status.IN_PROGRESS, model)
        for first in range(0, lines, pack):
            texts = [self.line(f"{batch_id} {n}", f"r-{n}", model) for n in range(first, min(first + pack, lines))]
            await self.send(
                b"".join(texts),
                self.head(batch_id, first, seconds, url, project=project),
                key=f"{batch_id}/{first // same_key}",
                express=express,
                model=model,
            )
        return batch_id

    def line(self, text: str, custom_id: str, model: str | None = None) -> bytes:
        """An input line."""
        body = {"model": model or self.model, "messages": [{"role": "user", "content": text}]}
        return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "", "body": body}) + b"\n"

    def head(
        self,
        batch_id: str,
        first: int,
        seconds: float = 600,
        url: str = "/v1/chat/completions",
        *,
        ref: codec.LineRef | None = None,
        project: str = "p",
    ) -> codec.Headers:
        """The headers of a record."""
        head = codec.RequestHead(
            batch_id=batch_id,
            project=project,
            first=first,
            deadline=int(time.time() + seconds),
            url=url,
            ref=ref,
        )
        return codec.request_headers(head)

    async def say(self, batch_id: str, status: Status, model: str | None = None) -> None:
        """Publish the state of a batch, as results would."""
        batch = Batch(
            id=batch_id, endpoint="/v1/chat/completions", input_file_id=ids.new_file_id("p"),
            completion_window="24h", status=status, created_at=0, expires_at=1, model=model or self.model,
        )  # fmt: skip
        record = BatchRecord(project="p", batch=batch)
        await self._producer.send_and_wait(topics.BATCHES.name, codec.encode(record), key=batch_id.encode())

    async def collect(self, batch_id: str, lines: int) -> list[dict[str, Any]]:
        """Wait for a number of outcomes of a batch; returns its lines in the order of their indices."""

        async def arrived() -> bool:
            await self.poll()
            return sum(1 for place in self.lines if place[0] == batch_id) >= lines

        await until(arrived, f"{lines} outcomes")
        return [self.lines[place] for place in sorted(self.lines) if place[0] == batch_id]

    async def poll(self) -> None:
        """Read the available outcomes."""
        for records in (await self._consumer.getmany(timeout_ms=50)).values():
            for record in records:
                if dict(record.headers).get(codec.KIND) == codec.LINES:
                    self._take(record)

    def _take(self, record: Any) -> None:
        value = record.value
        batch_id, marks = codec.lines_marks(record.headers, len(value))
        if (ref := codec.lines_ref(record.headers)) is not None:
            self.refs.append(ref)
            value = (self.store / ref.key).read_bytes()
        for mark in marks:
            place = batch_id, mark.index
            self.lines[place] = json.loads(value[: mark.size])
            self.marks[place] = mark
            self.times[place] += 1
            value = value[mark.size :]
        assert not value


@asynccontextmanager
async def rig(
    kafka: str,
    backend: Backend,
    folder: Path,
    *,
    max_in_flight: int = 64,
    count: int = 1,
    model: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    **named: object,
) -> AsyncIterator[Rig]:
    """A rig of one or more models that the backend serves; several rigs share the broker.

    Args:
        kafka: The broker.
        backend: The server.
        folder: Folder for data.
        max_in_flight: Bound of each model.
        count: Number of models.
        model: More settings of each model.
        environ: More variables of each process.
        named: More settings of the server.
    """
    models = backend.models(*(f"m-{secrets.token_hex(4)}" for _ in range(count)), max_in_flight=max_in_flight)
    for one in models.values():
        one["backends"][0] |= named
        one.update(model or {})
    settings = Settings(models=models, data=folder, kafka=kafka)  # type: ignore[arg-type]
    await ensure_topics(settings, kafka)
    await ensure_model_topics(settings, kafka, *models)
    servers = await set_up(kafka, settings)
    environment = {"TIDEMILL_KAFKA": kafka, "TIDEMILL_DATA": str(folder), **(environ or {})}
    made = Rig(kafka, settings, environment)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        await change(kafka, dict.fromkeys(servers))
