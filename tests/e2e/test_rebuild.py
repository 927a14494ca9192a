"""What the log keeps is enough: files are made again without a call, and lost state comes back as it was."""

import json
import shutil
import subprocess
import sys

import pytest
from openai import OpenAI
from support.backend import Behaviour
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 400
END_SECONDS_MAX = 90.0
COMMAND_SECONDS_MAX = 60.0


def answers(body, nth):
    """Every seventh line is refused; those of `slow` batches past the hundredth hang until their batch is over."""
    del nth
    word, number = body["messages"][0]["content"].split()
    if word == "slow" and int(number) >= 100:
        return Behaviour(latency_seconds=30)
    return Behaviour(status=400 if int(number) % 7 == 0 else 200)


@pytest.fixture(scope="module")
def place(tmp_path_factory, inference):
    """An installation with small parts, so that a batch has several, and windows of four seconds."""
    environ = {"TIDEMILL_WINDOWS": '["24h", "4s"]', "TIDEMILL_PART_BYTES": "65536"}
    data = tmp_path_factory.mktemp("rebuild") / "data"
    with Stack(data, inference.models("chat", max_in_flight=64), environ) as stack:
        yield stack


def client_of(stack):
    return OpenAI(base_url=stack.api, api_key=KEY, max_retries=10)


def ended(stack, word, window):
    """A batch that is over."""
    client = client_of(stack)
    lines = []
    for number in range(LINES):
        body = {"model": "chat", "messages": [{"role": "user", "content": f"{word} {number}"}]}
        line = {"custom_id": f"{word}-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line))
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window)
    return wait_until(
        lambda: (now := client.batches.retrieve(made.id)).status in ("completed", "expired") and now,
        "the end of the batch",
        seconds_max=END_SECONDS_MAX,
    )


def rebuild(stack, *arguments):
    """Exit code and words of `tidemill rebuild`."""
    command = [sys.executable, "-m", "tidemill", "rebuild", *arguments, "--data", str(stack.data)]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=COMMAND_SECONDS_MAX, env=stack._environ()
    )
    return done.returncode, done.stdout + done.stderr


def everything(stack):
    """All that a client sees, and the ledger."""
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


def test_files_are_made_again(place, backend):
    """Of a batch that completed and of one that expired; what was damaged or deleted is replaced."""
    backend.reset(answers)
    batches = [ended(place, "fast", "24h"), ended(place, "slow", "4s")]
    assert [batch.status for batch in batches] == ["completed", "expired"]
    assert batches[1].request_counts.completed
    names = [batch.id for batch in batches]
    before = everything(place)
    calls = backend.calls
    code, words = rebuild(place, *names)
    assert code == 0, words
    assert words.count("equal to the published receipt") == 2
    store = place.data / "store"
    (store / "files" / batches[0].output_file_id).write_bytes(b"damaged")
    (store / "files" / batches[1].error_file_id).unlink()
    code, words = rebuild(place, *names)
    assert words.count("--write replaces it") == 2
    code, words = rebuild(place, *names, "--write")
    assert code == 0
    assert words.count("is replaced") == 2
    assert everything(place) == before
    assert backend.calls == calls


def test_what_cannot_be_made_again_is_told(place):
    """A batch that is not there."""
    code, words = rebuild(place, "batch_" + "0" * 32)
    assert code == 1
    assert "no such batch" in words
    assert "Traceback" not in words


def test_lost_state_comes_back(place, backend):
    """With every state folder deleted: the same batches, counts, files and ledger, and not a call made again."""
    backend.reset(answers)
    ended(place, "fast", "24h")
    before = everything(place)
    calls = backend.calls
    place.stop()
    shutil.rmtree(place.data / "state")
    place.start()
    assert everything(place) == before
    ended(place, "fast", "24h")
    assert backend.calls == calls + LINES


def test_state_lost_in_the_middle_of_a_batch(place, backend):
    """It goes on from what the changelogs and the log have; nothing is lost, and no line is called again."""
    backend.reset(lambda *_: Behaviour(latency_seconds=0.2))
    client = client_of(place)
    source = next(batch for batch in client.batches.list(limit=100) if batch.status == "completed").input_file_id
    made = client.batches.create(input_file_id=source, endpoint="/v1/chat/completions", completion_window="24h")
    wait_until(lambda: backend.calls >= LINES // 4, "some calls")
    place.stop()
    assert backend.calls < LINES
    shutil.rmtree(place.data / "state")
    place.start()
    client = client_of(place)
    batch = wait_until(
        lambda: (now := client.batches.retrieve(made.id)).status == "completed" and now,
        "the end of the batch",
        seconds_max=END_SECONDS_MAX,
    )
    assert batch.request_counts.completed == LINES
    assert batch.tidemill["receipt"]["missing"] == batch.tidemill["receipt"]["double"] == 0
    assert backend.repeats == 0
