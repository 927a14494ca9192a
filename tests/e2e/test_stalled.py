"""A batch that waits says why: in the API, the commands, the metrics, on the page and in its error lines."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from openai import OpenAI
from playwright.sync_api import expect
from support.backend import WAIT_SECONDS, Backend, Behaviour
from support.browser import chromium
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

CHAT = "/v1/chat/completions"
WINDOW = "60s"
LINES = 20
FROZEN_LINES = 200
ANSWERED = {"frozen": FROZEN_LINES // 2, "tokens": 1}
"""Lines that get an answer, by model; of the other models none."""
STATUSES = {"busy": 503, "refused": 401}
CASES = {
    "away": ("server_unreachable", None, "cannot be reached"),
    "busy": ("server_refuses", 503, "answers 503"),
    "refused": ("server_refuses", 401, "answers 401"),
    "night": ("schedule", None, "takes no calls at this hour"),
    "frozen": ("server_silent", None, "answered none"),
    "drained": ("drained", None, "is set to drain"),
    "tokens": ("tokens_per_minute", None, "tokens of this minute are used"),
    "crowded": ("headroom", None, "busy with requests of others"),
}


@pytest.fixture(scope="module")
def closed():
    """The URL of a server that is not there."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{door.getsockname()[1]}/v1"


@pytest.fixture(scope="module")
def crowded():
    """A server that others keep busy, by its metrics."""
    with Backend() as server:
        server.capacity, server.others = 4, 1_000
        yield server


@pytest.fixture(scope="module")
def stalled(inference, closed, crowded, tmp_path_factory):
    """An installation whose models have one trouble each."""
    never = [
        {"from": "00:00", "to": "12:00", "max_in_flight": 0},
        {"from": "12:00", "to": "00:00", "max_in_flight": 0},
    ]
    models = inference.models("well", *STATUSES) | inference.models("frozen", max_in_flight=8)
    models["away"] = {"backends": [{"url": closed}]}
    models["night"] = {"backends": [{"url": inference.url, "hours": never}]}
    models["drained"] = {"backends": [{"url": inference.url, "drain": True}]}
    models["tokens"] = {"backends": [{"url": inference.url}], "tokens_per_minute": 1}
    models["crowded"] = {"backends": [{"url": crowded.url, "spare": {"calls_min": 0, "requests_max": 4}}]}
    environ = {
        "TIDEMILL_WINDOWS": f'["24h", "{WINDOW}"]',
        "TIDEMILL_GRACE_SECONDS": "1",
        "TIDEMILL_LIMITS__BATCHES_IN_PROGRESS_MAX": str(len(CASES)),
    }
    with Stack(tmp_path_factory.mktemp("stalled") / "data", models, environ) as stack:
        yield stack


def lines_of(model):
    return FROZEN_LINES if model == "frozen" else LINES


def trouble(body, _):
    """How the server answers a line, by its model and its number."""
    model, number = body["messages"][0]["content"].split()
    if model == "frozen":
        # A first half that takes some seconds has a rate, which is 0 from then on.
        return Behaviour(latency_seconds=0.2 if int(number) < ANSWERED[model] else WAIT_SECONDS)
    return Behaviour(status=STATUSES.get(model, 200))


def inputs(model):
    return "".join(
        json.dumps({
            "custom_id": f"r{n}", "method": "POST", "url": CHAT,
            "body": {"model": model, "messages": [{"role": "user", "content": f"{model} {n}"}]},
        }) + "\n"
        for n in range(lines_of(model))
    )  # fmt: skip


def started(client, model):
    file = client.files.create(file=("in.jsonl", inputs(model).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=WINDOW).id


def interrupted(stack, words, folder, *arguments):
    """Exit code and stderr of a command that gets Ctrl-C once it has printed some words; it has no terminal."""
    said = folder / "stderr"
    command = ["env", "--default-signal=INT", sys.executable, "-m", "tidemill", *arguments]
    environ = os.environ | {"TIDEMILL_BASE_URL": stack.api, "TIDEMILL_API_KEY": KEY, "XDG_STATE_HOME": str(folder)}
    with said.open("wb") as file, subprocess.Popen(command, env=environ, stderr=file) as process:
        try:
            wait_until(lambda: words in said.read_text(), f"{words} from {arguments}")
        finally:
            process.send_signal(signal.SIGINT)
    return process.returncode, said.read_text()


def listed(stack):
    command = [sys.executable, "-m", "tidemill", "list"]
    environ = os.environ | {"TIDEMILL_BASE_URL": stack.api, "TIDEMILL_API_KEY": KEY, "COLUMNS": "200"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def examined(stack):
    command = [sys.executable, "-m", "tidemill", "doctor", "--data", str(stack.data)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=stack._environ()).stdout


def stalled_by_reason(stack):
    health = json.loads((stack.data / "run.json").read_text())["health"]
    with urllib.request.urlopen(f"{health['results']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {line.split('"')[1]: float(line.split()[-1]) for line in text.splitlines() if "_stalled{" in line}


def test_a_stall_of_each_kind_is_told_everywhere(stalled, backend, tmp_path):
    """Then the window ends, and each expired line says what held it."""
    backend.reset(trouble)
    client = OpenAI(base_url=stalled.api, api_key=KEY)
    ids = {model: started(client, model) for model in CASES}

    def waits(model):
        return client.batches.retrieve(ids[model]).tidemill["waiting"]

    for model, (reason, status, words) in CASES.items():
        wait_until(lambda model=model: waits(model), f"what {model} waits for", seconds_max=40)
        first = wait_until(
            lambda model=model, reason=reason: next(
                (one for one in waits(model)[:1] if one["reason"] == reason), None
            ),
            f"{reason} as the first reason of {model}",
        )
        assert (first["status"], words in first["message"]) == (status, True), first
        assert first["lines"] <= lines_of(model) - ANSWERED.get(model, 0)
    counted = stalled_by_reason(stalled)
    assert {reason: counted[reason] for reason, _, _ in CASES.values()} == {
        "server_unreachable": 1, "server_refuses": 2, "schedule": 1, "server_silent": 1, "drained": 1,
        "tokens_per_minute": 1, "headroom": 1,
    }  # fmt: skip
    assert counted["no_processor"] == 0
    table = listed(stalled)
    for reason in (
        " unreachable ",
        " refuses ",
        " schedule ",
        " silent ",
        " drained ",
        " tokens per m ",
        " headroom ",
    ):
        assert reason in table, table
    progress = wait_until(
        lambda: (
            (found := client.batches.retrieve(ids["frozen"]).tidemill["progress"])["lines_per_second"] == 0
            and found
        ),
        "rate 0 of the batch whose server answers nothing more",
    )
    assert (progress["percent"], progress["done_earliest_at"], progress["done_latest_at"]) == (50.0, None, None)
    code, said = interrupted(stalled, "answered none", tmp_path, "watch", ids["frozen"])
    assert (code, "100 of 200 lines" in said, "left" in said) == (130, True, False), said
    (tmp_path / "more.jsonl").write_text(inputs("well"))
    code, said = interrupted(stalled, "waits for quota", tmp_path, "run", str(tmp_path / "more.jsonl"))
    assert (code, f"has {len(CASES)} batches in progress" in said) == (130, True), said
    words = examined(stalled)
    for model, (_, _, why) in CASES.items():
        assert f"warn  batches: {ids[model]} " in words, words
        assert why in words, words
    with chromium() as browser:
        page = browser.new_page()
        page.goto(stalled.api.removesuffix("/v1"))
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("waits: server unreachable")).to_be_visible()
        page.goto(f"{stalled.api.removesuffix('/v1')}/dashboard/#/batches/{ids['busy']}")
        expect(page.get_by_text("answers 503")).to_be_visible()
    for model, (_, _, words) in CASES.items():
        wait_until(
            lambda model=model: client.batches.retrieve(ids[model]).status == "expired", "the end", seconds_max=90
        )
        batch = client.batches.retrieve(ids[model])
        errors = [
            json.loads(line)["error"] for line in client.files.content(batch.error_file_id).text.splitlines()
        ]
        assert len(errors) == lines_of(model) - ANSWERED.get(model, 0)
        assert all(error["code"] == "batch_expired" and words in error["message"] for error in errors)
        assert words in batch.tidemill["waiting"][0]["message"]
