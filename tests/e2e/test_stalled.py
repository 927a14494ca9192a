"""A stalled batch says why: in the API, the commands, the metrics, on its page and in its error lines."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter

import pytest
from openai import OpenAI
from playwright.sync_api import expect
from support.backend import WAIT_SECONDS, Backend, Behaviour
from support.browser import chromium
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
SOON = "60s"
LATER = "24h"
LINES = 20
FROZEN_LINES = 200
ANSWERED = {"frozen": FROZEN_LINES // 2, "tokens": 1}
"""Number of lines with an answer, by model; other models have none."""
STATUSES = {"busy": 503, "refused": 401}
TWIN = "-soon"
"""Suffix of each model's twin, whose batch ends at its deadline while the other batch stays for inspection."""
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
    """The URL of a closed port."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{door.getsockname()[1]}/v1"


@pytest.fixture(scope="module")
def crowded():
    """A server whose metrics show many requests of other clients."""
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
    models = inference.models(*STATUSES) | inference.models("frozen", max_in_flight=8)
    models["away"] = {"backends": [{"url": closed}]}
    models["night"] = {"backends": [{"url": inference.url, "hours": never}]}
    models["drained"] = {"backends": [{"url": inference.url, "drain": True}]}
    models["tokens"] = {"backends": [{"url": inference.url}], "tokens_per_minute": 1}
    models["crowded"] = {"backends": [{"url": crowded.url, "headroom": True}]}
    models |= {f"{name}{TWIN}": copy.deepcopy(model) for name, model in models.items()}
    models |= inference.models("well")
    # With separate keys each model has its own server, so that their troubles stay apart.
    keys = {name: f"KEY_{name.upper().replace('-', '_')}" for name in models}
    for name, key in keys.items():
        models[name]["backends"][0]["api_key_env"] = key
    environ = {
        **dict.fromkeys(keys.values(), "sk-1"),
        "TIDEMILL_WINDOWS": f'{{"{LATER}": 0.5, "{SOON}": 0.5}}',
        "TIDEMILL_GRACE_SECONDS": "1",
        "TIDEMILL_LIMITS__BATCHES_IN_PROGRESS_MAX": str(2 * len(CASES)),
    }
    with Stack(tmp_path_factory.mktemp("stalled") / "data", models, environ) as stack:
        yield stack


def lines_of(model):
    return FROZEN_LINES if model.removesuffix(TWIN) == "frozen" else LINES


def trouble(body, _):
    """How the server answers a line, by its model and its number."""
    model, number = body["messages"][0]["content"].replace(TWIN, "").split()
    if model == "frozen":
        # A slow first half gives the batch a rate, which then drops to 0.
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


def started(client, model, window=LATER):
    file = client.files.create(file=("in.jsonl", inputs(model).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=window).id


def interrupted(stack, words, folder, *arguments):
    """Exit code and stderr of a command, without a terminal, that gets Ctrl-C after it prints these words."""
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
    with urllib.request.urlopen(f"{health['results']}/metrics", timeout=WAIT_SECONDS_MAX) as answer:
        text = answer.read().decode()
    return {line.split('"')[1]: float(line.split()[-1]) for line in text.splitlines() if "_stalled{" in line}


def check_batches(client, ids):
    """Each batch shows its reason first."""
    for model, (reason, status, words) in CASES.items():

        def waits(model=model):
            return client.batches.retrieve(ids[model]).tidemill["waiting"]

        def is_first(waits=waits, model=model, wanted=(reason, status), words=words):
            return any(
                (one["reason"], one["status"]) == wanted
                and words in one["message"]
                and one["lines"] <= lines_of(model) - ANSWERED.get(model, 0)
                for one in waits()[:1]
            )

        wait_until(is_first, f"{reason} as the first reason of {model}")


def check_metrics(stack):
    """The gauge counts batches by reason."""
    wanted = Counter(reason for reason, _, _ in CASES.values())

    def is_shown():
        counted = stalled_by_reason(stack)
        return {reason: counted[reason] for reason in wanted} == wanted and counted["no_processor"] == 0

    wait_until(is_shown, "a batch of each reason")


def check_commands(stack, ids, folder):
    """`list` and `watch` print the reasons."""
    waiting = [wait for line in listed(stack).splitlines() for wait in json.loads(line)["tidemill"]["waiting"]]
    assert {wait["reason"] for wait in waiting} >= {reason for reason, _, _ in CASES.values()}
    code, said = interrupted(stack, "answered none", folder, "watch", ids["frozen"])
    assert (code, "100 of 200 lines" in said, "left" in said) == (130, True, False), said


def check_doctor(stack, ids):
    """`doctor` names the batches and their reasons."""
    report = examined(stack)
    for model, (_, _, words) in CASES.items():
        assert f"warn  batches: {ids[model]} " in report, report
        assert words in report, report


def check_quota(stack, folder):
    """`run` waits for quota, and names it."""
    (folder / "more.jsonl").write_text(inputs("well"))
    code, said = interrupted(stack, "waits for quota", folder, "run", str(folder / "more.jsonl"))
    assert (code, f"has {2 * len(CASES)} batches in progress" in said) == (130, True), said


def check_dashboard(stack, ids):
    """The list shows the reason in short, the page of a batch in full."""
    root = stack.api.removesuffix("/v1")
    with chromium() as browser:
        page = browser.new_page()
        page.goto(root)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("cannot be reached").first).to_be_visible()
        page.goto(f"{root}/dashboard/#/batches?trouble=stalled")
        expect(page.get_by_text("waits: server unreachable").first).to_be_visible()
        page.goto(f"{root}/dashboard/#/batches/{ids['busy']}")
        expect(page.get_by_text("answers 503")).to_be_visible()


def check_error_lines(client, twins):
    """Once the window has ended, each expired line names the reason."""
    for model, (_, _, words) in CASES.items():

        def expired(model=model):
            batch = client.batches.retrieve(twins[model])
            return batch if batch.status == "expired" else None

        batch = wait_until(expired, f"the end of {model}")
        lines = client.files.content(batch.error_file_id).text.splitlines()
        errors = [json.loads(line)["error"] for line in lines]
        assert len(errors) == lines_of(model) - ANSWERED.get(model, 0)
        assert all(error["code"] == "batch_expired" and words in error["message"] for error in errors)
        assert words in batch.tidemill["waiting"][0]["message"]


def test_a_stalled_batch_shows_its_reason_everywhere(stalled, backend, tmp_path):
    """For each kind of stall: in the API, the metrics, the commands, the dashboard and the error lines."""
    backend.reset(trouble)
    client = OpenAI(base_url=stalled.api, api_key=KEY)
    ids = {model: started(client, model) for model in CASES}
    twins = {model: started(client, f"{model}{TWIN}", SOON) for model in CASES}

    names = ("lines_per_second", "percent", "done_earliest_at", "done_latest_at")

    def stopped():
        progress = client.batches.retrieve(ids["frozen"]).tidemill["progress"]
        return [progress[name] for name in names] == [0, 50.0, None, None]

    check_batches(client, ids)
    wait_until(stopped, "rate 0 of the batch whose server answers nothing more")
    check_commands(stalled, ids, tmp_path)
    check_dashboard(stalled, ids)
    check_error_lines(client, twins)
    check_metrics(stalled)
    check_doctor(stalled, ids)
    for model in CASES:
        started(client, model)
    check_quota(stalled, tmp_path)
