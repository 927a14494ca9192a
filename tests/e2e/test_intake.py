"""Direct producers: lines that come over Kafka are batches like all others."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from openai import OpenAI
from support.backend import as_told
from support.batches import WINDOWS, WINDOWS_SHORT
from support.producing import END, is_over, letters, line, lines_of, send, shown
from support.stack import KEY, Stack
from support.waiting import until

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

INPUT_LIFE_SECONDS = 7200
NUMBERED_LINES = 1000
INGEST_KIB_MAX = 512 * 1024
"""Two thirds of its memory limit in `deploy/`."""


@pytest.fixture(scope="module")
def stack(inference, tmp_path_factory):
    """An installation for streams."""
    environ = {
        "TIDEMILL_WINDOWS": WINDOWS,
        "TIDEMILL_DEFAULT_WINDOW": "24h",
        "TIDEMILL_INPUT_LIFE_SECONDS": str(INPUT_LIFE_SECONDS),
        "TIDEMILL_GRACE_SECONDS": "1",
        "TIDEMILL_PROJECTS": '{"small": {"limits": {"batches_in_progress_max": 1, "lines_enqueued_max": 3}}}',
        "TIDEMILL_FILE_LINES_MAX": str(NUMBERED_LINES),
    }
    with Stack(tmp_path_factory.mktemp("intake"), inference.models("chat", "other"), environ) as stack:
        yield stack


@pytest.fixture
def client(stack):
    with OpenAI(base_url=stack.api, api_key=KEY) as client:
        yield client


@pytest.fixture
async def producer(stack):
    producer = AIOKafkaProducer(**stack.clients("producers"))
    await producer.start()
    yield producer
    await producer.stop()


async def tidemill(folder, *words, code=0):
    """Run a command to its end."""
    argv = [sys.executable, "-m", "tidemill", *words]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


async def test_a_stream_is_a_batch(client, producer):
    """It runs before it is sealed, with live counts, and ends like any other batch."""
    batch_id = await send(producer, "first", [line(0), line(1)], ("tidemill-metadata", b'{"source": "crawl"}'))
    batch = await shown(client, batch_id, lambda found: found.request_counts.completed == 2)
    assert (batch.status, batch.request_counts.total) == ("in_progress", 2)
    assert (batch.metadata, batch.tidemill["stream"]) == ({"source": "crawl"}, "first")
    await send(producer, "first", [line(2)])
    await send(producer, "first", [line(3)], END)
    batch = await shown(client, batch_id, is_over)
    assert (batch.status, batch.model) == ("completed", "chat")
    assert [found["custom_id"] for found in lines_of(client, batch.output_file_id)] == [
        f"id-{n}" for n in range(4)
    ]
    receipt = batch.tidemill["receipt"]
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (4, 0, 0)
    assert client.files.content(batch.input_file_id).text.splitlines() == [line(n).decode() for n in range(4)]
    file = client.files.retrieve(batch.input_file_id)
    assert (batch.completion_window, file.expires_at) == ("24h", batch.created_at + INPUT_LIFE_SECONDS)
    again = await send(producer, "first", [line(0)], END)
    assert again != batch_id
    assert (await shown(client, again, is_over)).request_counts.completed == 1


async def test_a_bad_line_is_an_error_line(client, producer):
    """A bad line does not affect others, and each line is in one of the two files."""
    bad = [b"{", line(0), line(5, model="absent"), line(6, model="other"), b"[]"]
    batch_id = await send(producer, "bad", [line(0), *bad, line(1)], END)
    batch = await shown(client, batch_id, is_over)
    assert batch.status == "completed"
    errors = lines_of(client, batch.error_file_id)
    assert [found["error"]["code"] for found in errors] == [
        "invalid_json_line", "duplicate_custom_id", "model_not_found", "mismatched_model", "invalid_request",
    ]  # fmt: skip
    assert [found["custom_id"] for found in errors] == [None, "id-0", "id-5", "id-6", None]
    assert [found["custom_id"] for found in lines_of(client, batch.output_file_id)] == ["id-0", "id-1"]
    assert (batch.request_counts.total, batch.request_counts.failed) == (7, 5)


async def test_ingest_bounds_the_memory_of_a_record(stack, client):
    """A bomb, tiny bad lines and very many bad lines: ingest stays far below its limit, and others continue."""
    wire = AIOKafkaProducer(
        **stack.clients("producers"), compression_type="zstd", max_request_size=1 << 28, max_batch_size=1 << 28
    )
    await wire.start()
    try:
        for _ in range(3):
            await send(wire, "tiny", [b"x\n" * 400_000])
        await send(wire, "bomb", [b"x\n" * (75 << 20)])
        bad = await send(wire, "bad lines", [b"x" * 70] * 14_000)
        for _ in range(4):
            await send(wire, "bad lines", [b"x" * 70] * 14_000)
        neighbour = await send(wire, "neighbour", [line(0)], END)
        await send(wire, "bad lines", [line(0)], END)
        assert (await shown(client, neighbour, is_over)).request_counts.completed == 1
        counts = (await shown(client, bad, is_over)).request_counts
        assert (counts.total, counts.failed) == (70_001, 70_000)
    finally:
        await wire.stop()
    (reason,) = {dict(letter.headers)["tidemill-dead-reason"] for letter in await letters(stack, "tiny")}
    assert reason == b"it has more than 16384 lines"
    (letter,) = await letters(stack, None)
    assert b"is more than 8388608 bytes when decompressed" in dict(letter.headers)["tidemill-dead-reason"]
    (pid,) = stack.pids("ingest")
    status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text, "utf-8")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert int(peak) < INGEST_KIB_MAX


async def test_an_idle_stream_is_sealed(inference, tmp_path):
    """A producer that goes away leaves a batch that ends; no other stream of this installation is idle."""
    with Stack(tmp_path / "idle", inference.models("chat"), {"TIDEMILL_INTAKE_IDLE_SECONDS": "1"}) as stack:
        async with AIOKafkaProducer(**stack.clients("producers")) as producer:
            batch_id = await send(producer, "silent", [line(0)])
        with OpenAI(base_url=stack.api, api_key=KEY) as client:
            batch = await shown(client, batch_id, is_over)
    assert (batch.status, batch.request_counts.completed) == ("completed", 1)


async def test_a_record_without_a_valid_key_becomes_a_dead_letter(stack, client, producer):
    """The record is kept for the operator without its credential, and opens nothing."""
    before = {batch.id for batch in client.batches.list()}
    reasons = {}
    for name, key in {
        "no-key": None,
        "odd-key": ("authorization", b"Bearer sk-wrong"),
        "basic": ("authorization", b"Basic eDp5"),
    }.items():
        await send(producer, name, [line(0)], END, key=key)
        (letter,) = await letters(stack, name)
        assert "authorization" not in dict(letter.headers)
        reasons[name] = dict(letter.headers)["tidemill-dead-reason"].decode()
    assert reasons["odd-key"] == "its key is not known"
    assert "missing" in reasons["no-key"]
    assert "missing" in reasons["basic"]
    assert {batch.id for batch in client.batches.list()} == before


async def test_the_key_determines_the_project(stack, client, producer):
    """Two projects may use one stream name, and neither sees the other's; a key to read opens nothing."""
    made = {
        role: client.post("/admin/keys", body={"name": role, "project": "acme", "role": role}, cast_to=object)
        for role in ("write", "read")
    }
    secrets = {role: ("authorization", f"Bearer {key['secret']}".encode()) for role, key in made.items()}
    theirs = await send(producer, "shared", [line(0)], key=secrets["write"])
    mine = await send(producer, "shared", [line(0), line(1)])
    await send(producer, "shared", [line(1), line(2)], END, key=secrets["write"])
    await send(producer, "shared", [line(2)], END)
    with OpenAI(base_url=stack.api, api_key=made["write"]["secret"]) as acme:
        batch = await shown(acme, theirs, is_over)
        assert batch.request_counts.completed == 3
        assert [found.id for found in acme.batches.list()] == [theirs]
    assert (await shown(client, mine, is_over)).request_counts.completed == 3
    await send(producer, "reader", [line(0)], END, key=secrets["read"])
    (letter,) = await letters(stack, "reader")
    assert dict(letter.headers)["tidemill-dead-reason"] == b"its key may only read"


async def test_a_token_lets_one_stream_in(stack, client, producer):
    """A stream of its project, and no other; it ends with the key that created it."""
    made = client.post("/admin/keys", body={"name": "t", "project": "tokens", "role": "write"}, cast_to=object)
    with OpenAI(base_url=stack.api, api_key=made["secret"]) as holder:
        token = holder.post("/intake/tokens", body={"stream": "tokened"}, cast_to=object)["token"]
        key = ("authorization", f"Bearer {token}".encode())
        batch_id = await send(producer, "tokened", [line(0)], key=key)
        await send(producer, "tokened-not", [line(0)], END, key=key)
        await send(producer, "tokened", [line(1)], END, key=key)
        assert (await shown(holder, batch_id, is_over)).request_counts.completed == 2
    (letter,) = await letters(stack, "tokened-not")
    assert dict(letter.headers)["tidemill-dead-reason"] == b"its token is for another stream"
    assert token.encode() not in str(letter).encode()
    client.delete(f"/admin/keys/{made['id']}", cast_to=object)

    async def go_on():
        while True:
            await send(producer, "tokened", [line(2)], END, key=key)
            await asyncio.sleep(0.2)

    going_on = asyncio.create_task(go_on())
    try:
        letter = (await letters(stack, "tokened"))[0]
    finally:
        going_on.cancel()
    assert dict(letter.headers)["tidemill-dead-reason"] == b"its key is revoked or expired"


async def test_the_limits_of_a_project_bind_its_streams(stack, client, producer):
    """A line beyond them is an error line, which can be rerun; a stream is a dead letter while another runs."""
    made = client.post("/admin/keys", body={"name": "small", "project": "small", "role": "write"}, cast_to=object)
    key = ("authorization", f"Bearer {made['secret']}".encode())
    with OpenAI(base_url=stack.api, api_key=made["secret"]) as small:
        batch_id = await send(producer, "narrow", [b"{", *map(line, range(4))], key=key)
        # Streams of two partitions have no order among themselves: ingest may open the second one first.
        await shown(small, batch_id)
        await send(producer, "second", [line(0)], END, key=key)
        (letter,) = await letters(stack, "second")
        reason = dict(letter.headers)["tidemill-dead-reason"].decode()
        assert reason == "its project has 1 batch in progress and may have 1"
        await send(producer, "narrow", [], END, key=key)
        batch = await shown(small, batch_id, is_over)
        assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 3)
        codes = [found["error"]["code"] for found in lines_of(small, batch.error_file_id)]
        assert codes == ["invalid_json_line", "lines_enqueued_max", "lines_enqueued_max"]
        again = small.post(f"/batches/{batch_id}/rerun", body={"lines": "failed"}, cast_to=object)
        batch = await shown(small, again["id"], is_over)
        assert (batch.status, batch.request_counts.completed) == ("completed", 2)
        assert [found["custom_id"] for found in lines_of(small, batch.output_file_id)] == ["id-2", "id-3"]


async def test_a_cancel_ends_a_stream(stack, backend, client, producer):
    """Accepted lines are in a file; records that come later, until the stream ends, are dead letters."""
    backend.rule = as_told
    batch_id = await send(producer, "stopped", [line(0), line(1, stop="wait"), line(2, stop="wait")])
    await shown(client, batch_id, lambda found: found.request_counts.completed == 1)
    client.batches.cancel(batch_id)
    batch = await shown(client, batch_id, is_over)
    assert (batch.status, batch.request_counts.total) == ("cancelled", 3)
    assert [found["error"]["code"] for found in lines_of(client, batch.error_file_id)] == ["batch_cancelled"] * 2
    await send(producer, "stopped", [line(3)])
    (letter,) = await letters(stack, "stopped")
    assert b"cancelled" in dict(letter.headers)["tidemill-dead-reason"]
    await send(producer, "stopped", [], END)
    after = await send(producer, "stopped", [line(4)], END)
    assert (await shown(client, after, is_over)).request_counts.completed == 1


async def test_a_stream_expires(backend, client, producer):
    """At its deadline it is sealed; what was not run has its error line, and the next line opens another batch."""
    backend.rule = as_told
    lines = [line(0), line(1, stop="wait")]
    for name in WINDOWS_SHORT:
        batch_id = await send(producer, name, lines, ("tidemill-window", name.encode()))
        batch = await shown(client, batch_id, is_over)
        if batch.request_counts.completed:
            break
    assert (batch.status, batch.request_counts.total) == ("expired", 2)
    assert [found["error"]["code"] for found in lines_of(client, batch.error_file_id)] == ["batch_expired"]
    assert await send(producer, name, [line(2)], END) != batch_id


async def test_a_repeated_record_is_dropped(client, producer):
    """Ingest drops a record whose number is not above the earlier ones."""
    batch_id = await send(producer, "counted", [line(0)], ("tidemill-seq", b"1"))
    await send(producer, "counted", [line(1)], ("tidemill-seq", b"2"))
    await send(producer, "counted", [line(1)], ("tidemill-seq", b"2"))
    await send(producer, "counted", [line(2)], ("tidemill-seq", b"3"), END)
    batch = await shown(client, batch_id, is_over)
    assert (batch.request_counts.total, batch.request_counts.failed) == (3, 0)


async def test_a_killed_ingest_loses_and_doubles_nothing(stack, client, producer):
    """Lines arrive while the stage is killed again and again."""
    batch_id = await send(producer, "killed", [line(0)])
    for start in range(1, 3001, 20):
        await send(producer, "killed", [line(number) for number in range(start, start + 20)])
        if start % 1000 == 1:
            killed = await asyncio.to_thread(stack.kill, "ingest")
            await until(lambda: (now := stack.pids("ingest")) and now != killed, "ingest again")  # noqa: B023
    await send(producer, "killed", [], END)
    batch = await shown(client, batch_id, is_over)
    assert (batch.status, batch.request_counts.completed) == ("completed", 3001)
    found = lines_of(client, batch.output_file_id)
    assert [entry["custom_id"] for entry in found] == [f"id-{number}" for number in range(3001)]
    receipt = batch.tidemill["receipt"]
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (3001, 0, 0)


async def test_the_command_produces(stack, client, tmp_path):
    """`tidemill produce` packs a file into records, and prints the batch id; without an end the stream stays open.

    The command asks for numbered result files, which together equal a single file, also after a rebuild.
    """
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\r\n".join(line(number) for number in range(3000)))
    options = ["--data", str(stack.data), "--base-url", stack.api, "--api-key", KEY]
    printed = []
    for end in ("--no-end", "--end"):
        wish = ["--stream", "tool", "--output", "numbered", end]
        done = await tidemill(tmp_path, "produce", str(file), *wish, *options)
        printed.append(done.stdout.strip())
    assert printed[0] == printed[1]
    assert f"tidemill watch {printed[0]}" in done.stderr
    batch = await shown(client, printed[0], is_over)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (6000, 3000, 3000)
    file_ids = batch.tidemill["output_file_ids"]
    assert [len(lines_of(client, file_id)) for file_id in file_ids] == [NUMBERED_LINES] * 3
    assert batch.output_file_id == file_ids[0]
    assert client.files.retrieve(file_ids[2]).filename == f"{batch.id}_output-00003.jsonl"
    whole = b"".join(client.files.content(file_id).content for file_id in file_ids)
    assert [json.loads(text)["custom_id"] for text in whole.splitlines()] == [f"id-{n}" for n in range(3000)]
    await tidemill(tmp_path, "watch", batch.id, "-o", "out.jsonl", *options[2:], code=3)
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    page = client.get(f"/batches/{batch.id}/results?status=completed&after=1998&limit=3", cast_to=object)
    assert [found["index"] for found in page["data"]] == [1999, 2000, 2001]
    done = await tidemill(tmp_path, "rebuild", batch.id, "--data", str(stack.data))
    assert done.stdout.count(": intact") == 8, done.stdout
