"""The log suffices: it restores result files without a call, and lost state as it was."""

import asyncio
import json
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from aiokafka import AIOKafkaProducer
from openai import NotFoundError, OpenAI
from support.backend import WAIT_SECONDS, Behaviour
from support.batches import WINDOWS, WINDOWS_SHORT
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.processors.outcomes.batching import LINE_BYTES_MAX
from tidemill.schemas import ids
from tidemill.schemas.log import topics
from tidemill.schemas.log.part import file_key

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 400


MESSAGE = {"role": "assistant", "content": "x" * LINE_BYTES_MAX}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
LARGE = json.dumps({"choices": [{"index": 0, "message": MESSAGE}], "usage": USAGE}).encode()
"""An answer that does not go into a record of the log."""


def answers(body, nth):
    """Refuse every seventh line; the third has a large answer; the last ones of `slow` batches hang."""
    del nth
    word, number = body["messages"][0]["content"].split()
    if word == "slow" and int(number) >= LINES - 10:
        return Behaviour(latency_seconds=WAIT_SECONDS)
    if int(number) == 3:
        return Behaviour(body=LARGE)
    return Behaviour(status=400 if int(number) % 7 == 0 else 200)


@pytest.fixture(scope="module")
def place(tmp_path_factory, inference):
    """An installation with small parts, so that a batch has several, and short windows."""
    environ = {"TIDEMILL_WINDOWS": WINDOWS, "TIDEMILL_PART_BYTES": "65536"}
    data = tmp_path_factory.mktemp("rebuild") / "data"
    with Stack(data, inference.models("chat", max_in_flight=64), environ) as stack:
        yield stack


def client_of(stack):
    return OpenAI(base_url=stack.api, api_key=KEY, max_retries=10)


def lines_of(word):
    for number in range(LINES):
        body = {"model": "chat", "messages": [{"role": "user", "content": f"{word} {number}"}]}
        line = {"custom_id": f"{word}-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line).encode()


def begun(stack, word, window):
    """The id of a batch of a file."""
    client = client_of(stack)
    file = client.files.create(file=("in.jsonl", b"\n".join(lines_of(word))), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window)
    return made.id


def streamed(stack, word, window):
    """The id of a batch that a direct producer sends, one bad line among its lines."""
    values = [b"\n".join([*lines_of(word), b"no line"]), b""]
    key = ("authorization", f"Bearer {KEY}".encode())
    headers = [[key, ("tidemill-window", window.encode())], [key, ("tidemill-end", b"true")]]

    async def send():
        async with AIOKafkaProducer(**stack.clients("producers")) as producer:
            sent = [
                await producer.send_and_wait(topics.INTAKE.name, value, key=word.encode(), headers=told)
                for value, told in zip(values, headers, strict=True)
            ]
        return ids.stream_batch_id(sent[0].partition, sent[0].offset)

    return asyncio.run(send())


def ended(stack, batch_id):
    """A batch once it is over."""
    client = client_of(stack)

    def is_over():
        with suppress(NotFoundError):
            batch = client.batches.retrieve(batch_id)
            return batch if batch.status in ("completed", "expired") else None

    return wait_until(is_over, "the end of the batch")


def rebuild(stack, *arguments):
    """Exit code and output of `tidemill rebuild`."""
    command = [sys.executable, "-m", "tidemill", "rebuild", *arguments, "--data", str(stack.data)]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=WAIT_SECONDS_MAX, env=stack._environ()
    )
    return done.returncode, done.stdout + done.stderr


def everything(stack):
    """Everything that a client sees, and the ledger."""
    client = client_of(stack)
    batches = [batch.model_dump() for batch in client.batches.list(limit=100)]
    contents = {
        name: client.files.content(name).content
        for batch in batches
        for name in (batch["output_file_id"], batch["error_file_id"])
        if name
    }
    files = sorted((file.model_dump() for file in client.files.list()), key=lambda file: file["id"])
    usage = client.get("/usage", cast_to=object)
    return batches, contents, files, usage


def lying(store, file_id):
    """The path of a result file, whose name ends with its writer."""
    (path,) = store.glob(f"{file_key(file_id)}-*")
    return path


def test_files_are_made_again(place, backend):
    """Of completed and expired batches, of files and of streams; damaged files are replaced."""
    backend.reset(answers)
    names = [make(place, "fast", "24h") for make in (begun, streamed)]
    for window in WINDOWS_SHORT[1:]:
        slow = [make(place, "slow", window) for make in (begun, streamed)]
        if all(ended(place, name).request_counts.completed for name in slow):
            break
    names += slow
    batches = [ended(place, name) for name in names]
    assert [batch.status for batch in batches] == ["completed", "completed", "expired", "expired"]
    assert all(batch.request_counts.completed for batch in batches)
    before = everything(place)
    calls = backend.calls
    code, words = rebuild(place, *names)
    assert code == 0, words
    assert words.count("equal to the published receipt") == len(names)
    store = place.data / "store"
    lying(store, batches[0].output_file_id).write_bytes(b"damaged")
    for batch in batches[1:]:
        lying(store, batch.error_file_id).unlink()
    code, words = rebuild(place, *(name[-8:] for name in names))
    assert code == 1
    assert words.count("--write replaces it") == len(names)
    code, words = rebuild(place, *names, "--write")
    assert code == 0
    assert words.count("; replaced") == len(names)
    assert everything(place) == before
    assert backend.calls == calls


def test_what_cannot_be_made_again_is_told(place):
    """An unknown batch, and more batches than one command takes."""
    code, words = rebuild(place, "batch_" + "0" * 32)
    assert code == 1
    assert "no such batch" in words
    assert "Traceback" not in words
    code, words = rebuild(place, *["0000"] * 101)
    assert code == 2
    assert "at most 100" in words


def test_lost_state_comes_back(place, backend):
    """With every state folder deleted: the same batches, counts, files and ledger, and not a call made again."""
    backend.reset(answers)
    for make in (begun, streamed):
        ended(place, make(place, "fast", "24h"))
    before = everything(place)
    calls = backend.calls
    place.stop()
    shutil.rmtree(place.data / "state")
    place.start()
    assert everything(place) == before
    ended(place, begun(place, "fast", "24h"))
    assert backend.calls == calls + LINES


def test_a_part_that_is_lost_is_made_again(place, backend):
    """Parts are deleted while their batch runs: it ends with every line, and no call is repeated."""
    backend.reset(
        lambda body, _: Behaviour(
            latency_seconds=WAIT_SECONDS if body["messages"][0]["content"] == "lost 0" else 0
        )
    )
    batch_id = begun(place, "lost", "24h")
    folder = place.data / "store" / "parts" / batch_id
    parts = wait_until(lambda: list(folder.glob("*")), "a part")
    assert backend.in_flight
    for part in parts:
        part.unlink()
    backend.hurry()
    batch = ended(place, batch_id)
    assert batch.request_counts.completed == LINES
    assert batch.tidemill["receipt"]["missing"] == batch.tidemill["receipt"]["double"] == 0
    assert (batch.tidemill["recovered"], batch.tidemill["waiting"]) == (True, [])
    assert backend.calls == LINES


def test_state_lost_in_the_middle_of_a_batch(place, backend):
    """It goes on from the changelogs and the log; nothing is lost, and no line is called again."""
    backend.reset(answers)
    source = ended(place, begun(place, "fast", "24h")).input_file_id
    # Most lines wait until the stop, which waits for those that are called.
    backend.reset(lambda *_: Behaviour(latency_seconds=2 if backend.calls > LINES // 4 else 0))
    client = client_of(place)
    made = client.batches.create(input_file_id=source, endpoint="/v1/chat/completions", completion_window="24h")
    wait_until(lambda: backend.calls >= LINES // 4, "some calls")
    place.stop()
    assert backend.calls < LINES
    backend.hurry()
    shutil.rmtree(place.data / "state")
    place.start()
    client = client_of(place)
    batch = wait_until(
        lambda: (now := client.batches.retrieve(made.id)).status == "completed" and now,
        "the end of the batch",
    )
    assert batch.request_counts.completed == LINES
    assert batch.tidemill["receipt"]["missing"] == batch.tidemill["receipt"]["double"] == 0
    assert backend.repeats == 0
