"""`tidemill run`, `watch` and `cancel` against a whole service: each end of a batch has its exit code."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend, Behaviour, as_told
from support.batches import WINDOWS_SHORT
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.e2e

Tidemill = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tidemill(stack: Stack, backend: Backend) -> Tidemill:
    """Start a command of the command line against the service."""
    backend.rule = as_told

    def start(*words: str, stdin: Any = None) -> "subprocess.Popen[str]":
        # A suite that runs in the background of a shell has SIGINT ignored, and would hand that on.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "tidemill", *words]
        where = ["--base-url", stack.api, "--api-key", KEY]
        return subprocess.Popen(
            [*command, *where], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def finished(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that ends by itself."""
    out, err = process.communicate(timeout=WAIT_SECONDS_MAX)
    return process.returncode, out, err


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def chats(path: Path, *stops: str | None) -> Path:
    """Write an input with one chat for each of `stops`, which decide how the mock backend answers."""
    with path.open("w", encoding="utf-8") as file:
        for number, stop in enumerate(stops):
            message = {"role": "user", "content": f"{path.name} {number} äöü \u2028"}
            body = {"model": "chat", "messages": [message]} | ({"stop": stop} if stop else {})
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def test_all_lines_succeed(tidemill: Tidemill, backend: Backend, tmp_path: Path) -> None:
    """Exit code 0: every line has one answer, in the order of the input, as the receipt says."""
    source, output = chats(tmp_path / "well.jsonl", *[None] * 1000), tmp_path / "out.jsonl"
    receipt = tmp_path / "receipt.json"
    code, out, err = finished(tidemill("run", str(source), "-o", str(output), "--receipt", str(receipt)))
    assert (code, out) == (0, ""), err
    assert "1,000 lines in = 1,000 out + 0 errors, 0 missing, 0 duplicate" in err
    assert [line["custom_id"] for line in lines(output)] == [line["custom_id"] for line in lines(source)]
    assert json.loads(receipt.read_text())["output"]["lines"] == 1000
    assert (backend.calls, backend.repeats) == (1000, 0)


@pytest.mark.parametrize("to_file", [True, False])
def test_the_same_command_resumes(tidemill: Tidemill, backend: Backend, tmp_path: Path, *, to_file: bool) -> None:
    """After Ctrl-C at a third no line is called twice, and the result is complete."""
    source, output = chats(tmp_path / f"{to_file}.jsonl", *[None] * 300), tmp_path / "out.jsonl"
    words = (
        "run",
        str(source),
        "--name",
        "nightly",
        "--metadata",
        "team=a",
        *(("-o", str(output)) if to_file else ()),
    )

    def answers(body: dict[str, Any], nth: int) -> Behaviour:
        return replace(as_told(body, nth), latency_seconds=0.05)

    backend.rule = answers
    first = tidemill(*words)
    wait_until(lambda: backend.calls >= 100, "a third of the calls")
    first.send_signal(signal.SIGINT)
    code, _, err = finished(first)
    assert (code, output.exists()) == (130, False), err
    assert "The same command resumes it." in err
    code, out, err = finished(tidemill(*words))
    assert code == 0, err
    found = output.read_text("utf-8") if to_file else out
    assert [json.loads(line)["custom_id"] for line in found.splitlines()] == [f"r{n}" for n in range(300)]
    assert (backend.calls, backend.repeats) == (300, 0)
    _, listed, _ = finished(tidemill("list", "--limit", "1"))
    batch = json.loads(listed)
    assert (batch["tidemill"]["name"], batch["metadata"]) == ("nightly", {"name": "nightly", "team": "a"})
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 300)
    if to_file:
        code, _, err = finished(tidemill(*words))
        assert (code, backend.calls) == (2, 300), err
        assert "out.jsonl already exists; --force overwrites it" in err


def test_no_line_succeeds(tidemill: Tidemill, tmp_path: Path) -> None:
    """Exit code 3, with the reason of the server; the input is stdin."""
    source = chats(tmp_path / "none.jsonl", "refuse", "refuse")
    with source.open("rb") as stdin:
        code, out, err = finished(tidemill("run", "-", stdin=stdin))
    assert (code, out) == (3, ""), err
    assert "0 of 2 succeeded, 2 failed" in err
    assert re.search(r"^stdin \([0-9a-f]{8}\) completed (after|within) ", err, re.MULTILINE), err
    assert re.search(r"^  2 x 400 \S+: \S+", err, re.MULTILINE), err


def test_results_go_to_stdout(tidemill: Tidemill, tmp_path: Path) -> None:
    """Nothing else is on stdout."""
    code, out, err = finished(tidemill("run", str(chats(tmp_path / "stdout.jsonl", None))))
    assert code == 0, err
    (line,) = out.splitlines()
    assert json.loads(line)["custom_id"] == "r0"


def test_some_lines_fail(tidemill: Tidemill, tmp_path: Path) -> None:
    """Exit code 3: the failed lines are in a file beside the output."""
    source, output = chats(tmp_path / "some.jsonl", None, "refuse", None), tmp_path / "out.jsonl"
    code, _, err = finished(tidemill("run", str(source), "-o", str(output)))
    assert code == 3, err
    assert [line["custom_id"] for line in lines(output)] == ["r0", "r2"]
    assert [line["custom_id"] for line in lines(tmp_path / "out.errors.jsonl")] == ["r1"]


def test_each_faulty_line_is_named(tidemill: Tidemill, backend: Backend, tmp_path: Path) -> None:
    """Exit code 4: no line was run."""
    source = tmp_path / "with-mistakes.jsonl"
    source.write_text((EXAMPLES / source.name).read_text("utf-8").replace("wordllama-256", "embed"), "utf-8")
    code, out, err = finished(tidemill("run", str(source)))
    assert (code, out, backend.calls) == (4, "", 0), err
    named = [line.split()[1].rstrip(":") for line in err.splitlines() if line.startswith("  line ")]
    assert named == ["2", "3", "4", "5", "7", "8"], err


def test_another_client_cancels_the_batch(tidemill: Tidemill, backend: Backend, tmp_path: Path) -> None:
    """Exit code 6: finished lines have their results, the others an error that says that they were cancelled."""
    source, output = chats(tmp_path / "cancel.jsonl", None, "wait", "wait"), tmp_path / "out.jsonl"
    running = tidemill("run", str(source), "-o", str(output))
    wait_until(lambda: backend.calls == 3, "calls")

    def shown() -> list[dict[str, Any]]:
        _, listed, _ = finished(tidemill("list", "--json", "--limit", "5"))
        return [one for one in map(json.loads, listed.splitlines()) if one["status"] == "in_progress"]

    # The progress of a small batch appears half a second after its start.
    (batch,) = wait_until(shown, "the batch at work")
    assert finished(tidemill("cancel", batch["id"]))[0] == 0
    code, _, err = finished(running)
    assert code == 6, err
    errors = lines(tmp_path / "out.errors.jsonl")
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 2
    assert [line["custom_id"] for line in lines(output)] == ["r0"]
    watched = finished(tidemill("watch", batch["id"], "--input", str(source), "-o", str(tmp_path / "again.jsonl")))
    assert watched[0] == 6
    assert (tmp_path / "again.jsonl").read_bytes() == output.read_bytes()


def test_a_batch_expires(tidemill: Tidemill, tmp_path: Path) -> None:
    """Exit code 5: lines that finished in time have their results."""
    for window in WINDOWS_SHORT:
        source, output = chats(tmp_path / f"late-{window}.jsonl", None, "wait"), tmp_path / f"{window}.jsonl"
        code, _, err = finished(tidemill("run", str(source), "-o", str(output), "--window", window))
        assert code == 5, err
        if output.exists() and lines(output):
            break
    assert [line["custom_id"] for line in lines(output)] == ["r0"]
    (late,) = lines(tmp_path / f"{window}.errors.jsonl")
    assert (late["custom_id"], late["error"]["code"]) == ("r1", "batch_expired")


def test_an_unknown_window_is_refused(tidemill: Tidemill, tmp_path: Path) -> None:
    """Exit code 2, with the message of the service."""
    code, _, err = finished(tidemill("run", str(chats(tmp_path / "w.jsonl", None)), "--window", "99d"))
    assert code == 2
    assert "24h" in err


def test_a_command_survives_a_restart_of_the_api(
    tidemill: Tidemill, stack: Stack, backend: Backend, tmp_path: Path
) -> None:
    """It waits for the new process, and no call is made twice."""
    source, output = chats(tmp_path / "outlives.jsonl", *[None] * 200), tmp_path / "out.jsonl"
    # A call of an earlier test may still be under way.
    before = backend.in_flight
    backend.hold()
    running = tidemill("run", str(source), "-o", str(output))
    wait_until(lambda: backend.in_flight > before, "calls")
    stack.kill("api")
    backend.release()
    code, _, err = finished(running)
    assert code == 0, err
    assert len(lines(output)) == 200
    assert backend.repeats == 0
