"""Ingest as a process of its own, on a real broker."""

import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Self

import orjson
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import ConsumerRecord, TopicPartition
from support.catalog import change, set_up
from support.trust import SIGNER
from support.waiting import WAIT_SECONDS_MAX, until, wait_until

from tidemill.configuration.settings import Settings
from tidemill.ingest.files.packing import INLINE_BYTES_MAX
from tidemill.kafka.admin import ensure_topics
from tidemill.kafka.producer import Log
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import Accepted, BatchCreated, CancelRequested, InputRef, Rejected
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.owner import KEY

pytestmark = pytest.mark.kafka

URL = "/v1/chat/completions"
MODEL = "ingest/test model"
REQUESTS = topics.requests(MODEL).name, topics.express(MODEL).name
MAIN = "from tidemill.configuration import settings; from tidemill.ingest.app import main; main(settings.load())"


@dataclass(kw_only=True)
class Place:
    """A running stage and what surrounds it."""

    kafka: str
    folder: Path
    settings: Settings
    log: Log
    store: DirectoryStore
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the stage, and wait until it is ready for work."""
        reading, writing = os.pipe()
        environ = {
            **os.environ,
            "TIDEMILL_VERIFY_KEYS": SIGNER.public,
            "TIDEMILL_KAFKA": self.kafka,
            "TIDEMILL_STORE": (self.folder / "store").as_uri(),
            "TIDEMILL_DATA": str(self.folder / f"data-{len(self.processes)}"),
            "TIDEMILL_MODELS": orjson.dumps({MODEL: {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}).decode(),
            "TIDEMILL_NOTIFY_FD": str(writing),
        }
        with (self.folder / "ingest.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", MAIN], env=environ, pass_fds=[writing], stdout=output, stderr=output
            )
        self.processes.append(process)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert any(word.startswith(b"ready") for word in pipe), (self.folder / "ingest.log").read_text()
        return process

    async def create(self, data: bytes | None, **changes: object) -> str:
        """Store a file, command a batch of it and return the batch's id."""
        batch_id, file_id = ids.new_batch_id(), ids.new_file_id("p")
        source = None
        if data is not None:
            source = InputRef(key=f"files/{file_id}", bytes=len(data))
            await self.store.write(source.key, chunks_of(data))
        now = int(time())
        batch = Batch(
            id=batch_id,
            endpoint=URL,
            input_file_id=file_id,
            completion_window="24h",
            status=Status.VALIDATING,
            created_at=now,
            expires_at=now + 86_400,
        ).model_copy(update=changes)
        command = BatchCreated(project="default", batch=batch, input=source)
        await self.log.send(topics.COMMANDS.name, batch_id, codec.encode(command))
        return batch_id

    async def fact(self, batch_id: str) -> Accepted | Rejected:
        """The first fact about a batch."""
        async with Reader(self.kafka, topics.OUTCOMES.name) as reader:
            records = await reader.until(lambda found: any(record.key == batch_id.encode() for record in found))
        fact = codec.decode_fact(next(record for record in records if record.key == batch_id.encode()).value)
        assert isinstance(fact, Accepted | Rejected)
        return fact

    async def requests(self, batch_id: str, lines: int) -> list[ConsumerRecord]:
        """The request records of a batch, once all its lines are there, in the order of their partitions."""
        async with Reader(self.kafka, *REQUESTS) as reader:
            return of(await reader.until(lambda found: len(lines_of(of(found, batch_id))) >= lines), batch_id)


class Reader:
    """All records of some topics, from the beginning."""

    def __init__(self, kafka: str, *topics: str) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
        self._topics = topics

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        partitions = []
        for topic in self._topics:
            numbers = await until(
                lambda topic=topic: self._consumer.partitions_for_topic(topic) or self._refresh()
            )
            partitions += [TopicPartition(topic, number) for number in numbers]
        self._consumer.assign(partitions)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def _refresh(self) -> None:
        await self._consumer._client.force_metadata_update()

    async def until(self, condition) -> list[ConsumerRecord]:
        """Read until what was read fulfils the condition, and return it."""
        found: list[ConsumerRecord] = []
        patience = time() + WAIT_SECONDS_MAX
        while not condition(found):
            assert time() < patience, f"not in {self._topics}: {len(found)} records"
            for records in (await self._consumer.getmany(timeout_ms=100)).values():
                found += records
        return found


async def chunks_of(data: bytes) -> AsyncIterator[bytes]:
    """The file as an upload."""
    yield data


def lines_of(records: list[ConsumerRecord]) -> dict[int, bytes | codec.LineRef]:
    """The lines of request records by their index."""
    lines: dict[int, bytes | codec.LineRef] = {}
    for record in records:
        head = codec.request_head(record.headers)
        found = [head.ref] if head.ref is not None else record.value.split(b"\n")
        lines.update(enumerate(found, head.first))
    return lines


def of(records: list[ConsumerRecord], batch_id: str) -> list[ConsumerRecord]:
    """The request records of one batch."""
    return [record for record in records if codec.request_head(record.headers).batch_id == batch_id]


def input_lines(count: int, content: str = "hi") -> list[bytes]:
    """Lines without fault."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    return [
        orjson.dumps({"custom_id": f"id {number}", "method": "POST", "url": URL, "body": body})
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The state folder of the stage."""
    return tmp_path_factory.mktemp("ingest")


@pytest.fixture
async def place(kafka, folder):
    """A stage that runs."""
    settings = Settings(models={MODEL: {"backends": [{"url": "http://127.0.0.1:9/v1"}]}})
    await ensure_topics(settings, kafka)
    named = await set_up(kafka, settings)
    place = Place(
        kafka=kafka, folder=folder, settings=settings, log=Log(kafka), store=DirectoryStore(folder / "store")
    )
    # As the api leaves it.
    (folder / "store" / KEY).touch()
    try:
        place.start()
        yield place
    finally:
        for process in place.processes:
            process.terminate()
        for process in place.processes:
            process.wait(WAIT_SECONDS_MAX)
        await place.log.stop()
        await change(kafka, dict.fromkeys(named))


async def test_a_file_becomes_requests(place):
    """`Accepted` has the total; each line is there once, unchanged, and in order under its key.

    The partitions get as many runs of lines, or one more.
    """
    lines = input_lines(3_000)
    batch_id = await place.create(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines))
    accepted = await place.fact(batch_id)
    assert isinstance(accepted, Accepted)
    assert (accepted.total, accepted.model) == (3_000, MODEL)
    records = await place.requests(batch_id, 3_000)
    assert lines_of(records) == dict(enumerate(lines))
    partitions, firsts = defaultdict(set), defaultdict(list)
    for record in records:
        partitions[record.key].add(record.partition)
        firsts[record.key].append(codec.request_head(record.headers).first)
    assert all(len(found) == 1 for found in partitions.values())
    assert all(found == sorted(found) for found in firsts.values())
    runs = Counter(partition for (partition,) in partitions.values())
    assert len(runs) > 1
    assert max(runs.values()) - min(runs.values()) <= 1


async def test_a_large_line_is_published_by_reference(place):
    """The record has its place in the store."""
    small, large = input_lines(1)[0], input_lines(2, "x" * INLINE_BYTES_MAX)[1]
    batch_id = await place.create(small + b"\n" + large + b"\n")
    lines = lines_of(await place.requests(batch_id, 2))
    assert lines[0] == small
    ref = lines[1]
    assert isinstance(ref, codec.LineRef)
    found = [chunk async for chunk in place.store.read(ref.key, ref.offset, ref.offset + ref.length)]
    assert b"".join(found) == large


async def test_a_faulty_file_is_rejected_with_all_faults(place):
    """The fact has each faulty line, and no line is run."""
    lines = input_lines(5)
    batch_id = await place.create(b"\n".join([lines[0], b"{", lines[1], b"[]", lines[0], b"{}"]))
    rejected = await place.fact(batch_id)
    assert isinstance(rejected, Rejected)
    assert [(error.line, error.code) for error in rejected.errors] == [
        (2, "invalid_json_line"),
        (4, "invalid_request"),
        (5, "duplicate_custom_id"),
        (6, "missing_required_parameter"),
    ]
    after = await place.create(b"\n".join(lines))
    async with Reader(place.kafka, *REQUESTS) as reader:
        heads = [
            codec.request_head(record.headers) for record in await reader.until(lambda found: of(found, after))
        ]
    assert all(head.batch_id != batch_id for head in heads)


async def test_a_store_that_is_not_mounted_rejects_no_batch(place):
    """Its batches wait, and say why; they go on once it is there."""
    mark = place.folder / "store" / KEY
    mark.unlink()
    batch_id = await place.create(b"")
    source = place.folder / "store" / "files"
    source.rename(source.with_name("away"))
    async with Reader(place.kafka, topics.OUTCOMES.name) as reader:
        found = await reader.until(lambda found: any(record.key == batch_id.encode() for record in found))
    (report,) = [record.value for record in found if record.key == batch_id.encode()][:1]
    assert b"the store has no object `owner`" in report
    source.with_name("away").rename(source)
    mark.touch()

    async def verdict():
        async with Reader(place.kafka, topics.OUTCOMES.name) as reader:
            found = await reader.until(lambda found: any(record.key == batch_id.encode() for record in found))
        facts = [codec.decode_fact(record.value) for record in found if record.key == batch_id.encode()]
        return next((fact for fact in facts if isinstance(fact, Accepted | Rejected)), None)

    assert isinstance(await until(verdict), Rejected), "an empty file, which it has read"


async def test_a_missing_file_is_rejected(place):
    """With OpenAI's text."""
    rejected = await place.fact(await place.create(None))
    assert isinstance(rejected, Rejected)
    assert [error.param for error in rejected.errors] == ["file_id"]


async def test_an_invalid_command_becomes_a_dead_letter(place):
    """It is kept with the reason, and the commands behind it are handled."""
    source = ids.new_batch_id()
    await place.log.send(topics.COMMANDS.name, source, b"no command")
    async with Reader(place.kafka, topics.DEAD.name) as reader:
        await reader.until(lambda found: any(record.value == b"no command" for record in found))
    await place.log.send(topics.COMMANDS.name, source, codec.encode(CancelRequested(batch_id=source, at=1)))
    assert isinstance(await place.fact(await place.create(b"\n".join(input_lines(1)))), Accepted)


async def test_a_successor_finishes_the_work_of_a_killed_stage(place):
    """It publishes commands from while the stage was away, and those under way when it died."""
    lines = input_lines(20_000)
    batch_id = await place.create(b"\n".join(lines))
    place.processes[-1].kill()
    place.processes[-1].wait(WAIT_SECONDS_MAX)
    later = await place.create(b"\n".join(lines[:10]))
    place.start()
    assert lines_of(await place.requests(batch_id, 20_000)) == dict(enumerate(lines))
    assert lines_of(await place.requests(later, 10)) == dict(enumerate(lines[:10]))


async def test_a_stop_is_clean_and_nothing_is_done_twice(place):
    """SIGTERM ends the process with code 0 and all work committed: the successor publishes nothing again."""
    lines = input_lines(100)
    batch_id = await place.create(b"\n".join(lines))
    await place.requests(batch_id, 100)
    first = place.processes[-1]
    first.send_signal(signal.SIGTERM)
    wait_until(lambda: first.poll() is not None, "the end of the stage")
    assert first.returncode == 0, (place.folder / "ingest.log").read_text()
    place.start()
    later = await place.create(b"\n".join(lines))
    async with Reader(place.kafka, topics.OUTCOMES.name) as reader:
        records = await reader.until(lambda found: any(record.key == later.encode() for record in found))
    assert sum(record.key == batch_id.encode() for record in records) == 1


async def test_processes_share_the_commands(place):
    """Batches come while a second process joins and while the first one leaves; each is published whole."""
    lines = input_lines(700)
    data = b"\n".join(lines)
    batches = [await place.create(data) for _ in range(10)]
    second = place.start()
    batches += [await place.create(data) for _ in range(10)]
    place.processes[0].terminate()
    batches += [await place.create(data) for _ in range(10)]
    async with Reader(place.kafka, *REQUESTS) as reader:
        records = await reader.until(lambda found: all(len(lines_of(of(found, one))) == 700 for one in batches))
    for batch_id in batches:
        assert lines_of(of(records, batch_id)) == dict(enumerate(lines))
    assert place.processes[0].wait(WAIT_SECONDS_MAX) == 0
    assert second.poll() is None
