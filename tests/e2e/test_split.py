"""`tidemill run` of a file that exceeds one batch, on an installation whose batches hold fifty lines."""

import json
import os
import subprocess
import sys

import pytest
from openai import OpenAI
from support.backend import Behaviour
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

pytestmark = pytest.mark.e2e

LINES_MAX = 50
LINES = 1_030
BATCHES = 21
FAILS_EVERY = 101
KILL_AFTER = 300


def answers(body, nth):
    """Refuse every 101st line; each answer takes a moment."""
    del nth
    number = int(body["messages"][0]["content"])
    return Behaviour(status=400 if number % FAILS_EVERY == 0 else 200, latency_seconds=0.05)


@pytest.fixture(scope="module")
def small(tmp_path_factory, inference):
    """A stack of small batches."""
    environ = {"TIDEMILL_FILE_LINES_MAX": str(LINES_MAX)}
    with Stack(tmp_path_factory.mktemp("small"), inference.models("chat", max_in_flight=16), environ) as stack:
        yield stack


def write(path, numbers):
    """An input with a line for each number."""
    with path.open("w") as file:
        for number in numbers:
            body = {"model": "chat", "messages": [{"role": "user", "content": str(number)}]}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def start(stack, *words, environ=None):
    """Start the command line."""
    command = [sys.executable, "-m", "tidemill", *map(str, words), "--base-url", stack.api, "--api-key", KEY]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


def finished(process):
    """Exit code and stderr."""
    _, err = process.communicate(timeout=WAIT_SECONDS_MAX)
    return process.returncode, err


def numbers(path):
    """The lines of a file of results."""
    with path.open() as file:
        return [int(json.loads(line)["custom_id"].removeprefix("line-")) for line in file]


def test_a_client_that_is_killed_goes_on(small, backend, tmp_path):
    """The same command resumes: it repeats no batch and no call, and the files are like those of one batch."""
    backend.reset(answers)
    source, output = write(tmp_path / "big.jsonl", range(LINES)), tmp_path / "out.jsonl"
    words = ("run", source, "-o", output, "--receipt", tmp_path / "receipt.json")
    first = start(small, *words)
    wait_until(lambda: backend.calls >= KILL_AFTER or first.poll() is not None, "calls")
    first.kill()
    first.communicate(timeout=WAIT_SECONDS_MAX)
    assert not output.exists()
    assert (tmp_path / "out.jsonl.tidemill").is_dir()
    code, err = finished(start(small, *words))
    refused = [number for number in range(LINES) if number % FAILS_EVERY == 0]
    assert code == 3, err
    assert f"1,030 lines in = {LINES - len(refused):,} out + {len(refused)} errors, 0 missing, 0 duplicate" in err
    assert numbers(output) == [number for number in range(LINES) if number % FAILS_EVERY]
    assert numbers(tmp_path / "out.errors.jsonl") == refused
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert (receipt["lines"], receipt["output"]["lines"], len(receipt["batches"])) == (LINES, 1_019, BATCHES)
    made = OpenAI(base_url=small.api, api_key=KEY).batches.list(limit=100).data
    assert {batch.id for batch in made} == {batch["id"] for batch in receipt["batches"]}
    assert (len(made), backend.repeats, backend.calls) == (BATCHES, 0, LINES)
    assert not (tmp_path / "out.jsonl.tidemill").exists()


def test_many_batches_on_stdout(small, backend, tmp_path):
    """They resume, too, and come out like one batch."""
    backend.reset(answers)
    words = ("run", write(tmp_path / "big.jsonl", range(1, 101)))
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    first = start(small, *words, environ=environ)
    wait_until(lambda: backend.calls or first.poll() is not None, "a call")
    first.kill()
    first.communicate(timeout=WAIT_SECONDS_MAX)
    out, err = start(small, *words, environ=environ).communicate(timeout=WAIT_SECONDS_MAX)
    assert [json.loads(line)["custom_id"] for line in out.splitlines()] == [f"line-{n}" for n in range(1, 101)], (
        err
    )
    assert (backend.calls, backend.repeats) == (100, 0)
    assert list((tmp_path / "tidemill").iterdir()) == []


def test_a_file_that_fits_is_one_batch(small, backend, tmp_path):
    """As usual, and its results may go to stdout."""
    backend.reset(answers)
    code, err = finished(start(small, "run", write(tmp_path / "fits.jsonl", range(1, LINES_MAX + 1))))
    assert code == 0, err
    assert "50 lines in = 50 out" in err


def test_an_id_that_stands_twice(small, backend, tmp_path):
    """Anywhere in the file: the run does not start."""
    backend.reset(answers)
    source = write(tmp_path / "in.jsonl", [1, *range(1, 60)])
    code, err = finished(start(small, "run", source, "-o", tmp_path / "out.jsonl"))
    assert (code, backend.calls) == (2, 0), err
    assert "line 2: it has the custom_id of line 1" in err
    assert not (tmp_path / "out.jsonl.tidemill").exists()
