"""`tidemill rerun` and `replay` against a whole service."""

import datetime as dt
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI
from support.backend import as_told, well
from support.batches import WINDOWS_SHORT
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"


@pytest.fixture
def tidemill(stack):
    """Run a command of the command line to its end; returns exit code, stdout and stderr."""

    def run(*words):
        command = [sys.executable, "-m", "tidemill", *map(str, words), "--base-url", stack.api, "--api-key", KEY]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def client(stack):
    """The official SDK."""
    return OpenAI(base_url=stack.api, api_key=KEY)


def chats(path, *stops):
    """Write an input with one chat for each of `stops`."""
    with path.open("w", encoding="utf-8") as file:
        for number, stop in enumerate(stops):
            message = {"role": "user", "content": f"{path.parent.name} {number}"}
            body = {"model": "chat", "messages": [message]} | ({"stop": stop} if stop else {})
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}) + "\n")
    return path


def names(path):
    """The ids of a result file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["custom_id"] for line in file]


def created_batch(client, err):
    """The batch that a command created, by the shortened id in its output."""
    short = re.findall(r"\(([0-9a-f]{8})\)", err)[-1]
    (batch_id,) = [batch.id for batch in client.batches.list() if batch.id.endswith(short)]
    return client.batches.retrieve(batch_id)


def test_a_rerun_of_the_failed_lines(tidemill, client, backend, tmp_path):
    """On another model; each batch names the other, and only these lines are called."""
    backend.reset(as_told)
    source, output = chats(tmp_path / "in.jsonl", None, "refuse", None, "refuse"), tmp_path / "out.jsonl"
    code, _, err = tidemill("run", source, "-o", output)
    assert code == 3, err
    assert "2 of 4 succeeded, 2 failed" in err
    assert "2 x 400 " in err
    old = created_batch(client, err)
    assert re.search(rf"To rerun the 2 unfinished lines: `\S+ -m tidemill rerun {old.id[-8:]}`", err), err
    backend.reset(well)
    again = ("rerun", old.id[-8:], "--model", "embed", "-o", tmp_path / "again.jsonl")
    for words in (again, (*again, "--force")):
        code, _, err = tidemill(*words)
        assert code == 0, err
    assert names(tmp_path / "again.jsonl") == ["r1", "r3"]
    assert backend.calls == 2
    assert {json.loads(body)["model"] for body in backend.bodies} == {"embed"}
    new = created_batch(client, err)
    assert (new.model, new.status, new.tidemill["rerun_of"]) == ("embed", "completed", old.id)
    assert client.batches.retrieve(old.id).tidemill["reruns"] == [new.id]
    code, _, err = tidemill("rerun", new.id)
    assert (code, "has no unfinished lines" in err) == (2, True), err


def test_a_rerun_of_expired_lines(tidemill, client, backend, tmp_path):
    """Also of lines with an error code, and of all lines."""
    backend.reset(as_told)
    for window in WINDOWS_SHORT:
        source = chats(tmp_path / f"{window}.jsonl", None, "wait", "refuse")
        code, _, err = tidemill("run", source, "-o", tmp_path / f"{window}.out.jsonl", "--window", window)
        assert code == 5, err
        old = created_batch(client, err)
        if (old.request_counts.completed, old.request_counts.failed) == (1, 1):
            break
    backend.reset(well)
    for only, found in (
        ("unfinished", ["r1", "r2"]),
        ("expired", ["r1"]),
        ("code=400", ["r2"]),
        ("all", ["r0", "r1", "r2"]),
    ):
        code, out, err = tidemill("rerun", old.id, "--only", only, "--window", "24h")
        assert code == 0, err
        assert [json.loads(line)["custom_id"] for line in out.splitlines()] == found
    assert len(client.batches.retrieve(old.id).tidemill["reruns"]) == 4


def test_a_replay_of_a_range_of_the_log(tidemill, client, backend, tmp_path):
    """After a dry run; also of a whole batch."""
    backend.reset(well)
    start = dt.datetime.now(dt.UTC).isoformat()
    source = chats(tmp_path / "in.jsonl", None, None, None)
    assert tidemill("run", source, "-o", tmp_path / "one.jsonl")[0] == 0
    code, _, err = tidemill("run", source, "-o", tmp_path / "two.jsonl")
    assert code == 0, err
    old = created_batch(client, err)
    wanted = ("replay", "chat", "--from", start)
    code, out, err = tidemill(*wanted, "--dry-run")
    assert (code, out) == (0, ""), err
    assert "6 lines of 2 batches, for /v1/chat/completions" in err
    assert backend.calls == 6
    code, _, err = tidemill(*wanted, "--model", "embed", "-o", tmp_path / "again.jsonl")
    assert code == 0, err
    found = [name.split("@") for name in names(tmp_path / "again.jsonl")]
    assert [name for name, _ in found] == ["r0", "r1", "r2"] * 2
    assert [owner for _, owner in found[3:]] == [old.id] * 3
    fixed = (*wanted, "--to", dt.datetime.now(dt.UTC).isoformat(), "-o", tmp_path / "fixed.jsonl", "--force")
    batches = [created_batch(client, tidemill(*fixed, *more)[2]).id for more in ((), (), ("--again",))]
    assert batches[0] == batches[1] != batches[2]
    code, _, err = tidemill("rerun", old.id, "--only", "all", "--dry-run")
    assert (code, "3 lines, for /v1/chat/completions" in err) == (0, True), err
    code, out, err = tidemill("rerun", old.id, "--only", "all")
    assert code == 0, err
    assert [json.loads(line)["custom_id"] for line in out.splitlines()] == ["r0", "r1", "r2"]
    assert len(client.batches.retrieve(old.id).tidemill["reruns"]) == 1
    code, _, err = tidemill("replay", "nomodel", "--from", start)
    assert (code, "'nomodel' does not exist" in err) == (2, True), err
    code, _, err = tidemill("replay", "chat", "--from", "soon")
    assert (code, "soon is neither a time" in err) == (2, True), err


def test_the_examples_of_the_page(stack, backend, tmp_path):
    """Run as printed, in a shell that stops at the first error."""
    backend.reset(well)
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "replay.md"
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    environ = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "*",
        "TIDEMILL_BASE_URL": stack.api, "TIDEMILL_API_KEY": KEY,
    }  # fmt: skip
    program = "\n".join(blocks).replace("wordllama-256", "embed")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True,
        timeout=WAIT_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 line, for /v1/embeddings" in done.stderr
