"""Anthropic's official SDKs with message batches, in versions with each way to send the key."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import sdk
from support.backend import Backend, as_told
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

SCENARIO = Path(__file__).with_name("anthropic_scenario.py")
PARAMS = {"model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}

pytestmark = pytest.mark.e2e


def waiting(stack: Stack) -> str:
    """Why batches wait, for the message of a failure."""
    with httpx.Client(
        base_url=stack.api, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX
    ) as client:
        found = client.get("/batches", params={"limit": 100}).json()["data"]
    return "\n".join(f"{each['id']} {each['status']} {each['tidemill'].get('waiting')}" for each in found)


@pytest.mark.parametrize("version", ["0.64.0", "2.14.0"])
def test_the_python_sdk_does_all_that_it_can(stack: Stack, backend: Backend, version: str) -> None:
    """Create, retrieve, list, cancel, delete, results, and every kind of error."""
    backend.rule = as_told
    command = [str(sdk.python(version, "anthropic")), str(SCENARIO), stack.api.removesuffix("/v1"), KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + waiting(stack)
    assert f"anthropic {version}" in done.stdout


@pytest.mark.parametrize("source", ["anthropic0", "anthropic1"])
def test_the_typescript_sdk_does_all_that_it_can(stack: Stack, backend: Backend, source: str) -> None:
    """The same on Node 20."""
    backend.rule = as_told
    node = sdk.node("20.18.0", source)
    # A module finds its packages from where it lies.
    scenario = shutil.copy(sdk.NODE_SOURCES / "anthropic.mjs", node.folder)
    command = [str(node.binary), str(scenario), stack.api.removesuffix("/v1"), KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + waiting(stack)


def test_a_batch_is_on_both_faces(stack: Stack, backend: Backend) -> None:
    """Created with one API, it is in the other's list, in the command line with its receipt, and in the usage."""
    del backend
    requests = [{"custom_id": name, "params": PARAMS} for name in "ab"]
    with httpx.Client(
        base_url=stack.api, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX
    ) as client:

        def get(path: str) -> dict[str, Any]:
            found: dict[str, Any] = client.get(path).raise_for_status().json()
            return found

        def end(batch_id: str) -> None:
            path = f"/messages/batches/{batch_id}"
            wait_until(lambda: get(path)["processing_status"] == "ended", f"the end of {batch_id}")

        first = client.post("/messages/batches", json={"requests": requests}).json()["id"]
        end(first)
        twin = get(f"/batches/{first}")
        assert (twin["status"], twin["endpoint"], twin["model"]) == ("completed", "/v1/messages", "chat")
        assert get("/batches?endpoint=/v1/messages")["data"][0]["id"] == first
        receipt = get(f"/batches/{first}/receipt")
        assert (receipt["lines"], receipt["missing"], receipt["double"]) == (2, 0, 0)
        options = {"endpoint": "/v1/messages", "input_file_id": twin["input_file_id"], "completion_window": "24h"}
        second = client.post("/batches", json=options).json()["id"]
        end(second)
        results = [client.get(f"/messages/batches/{each}/results").text for each in (first, second)]
        assert results[0] == results[1]
        assert [json.loads(line)["custom_id"] for line in results[0].splitlines()] == ["a", "b"]

        def billed() -> list[int]:
            sums = {each["batch_id"]: each for each in get("/usage?group_by=batch&limit=1000")["data"]}
            return [sums[each]["output_tokens"] for each in (first, second) if each in sums]

        assert wait_until(lambda: len(tokens := billed()) == 2 and tokens, "the usage of both") == [4, 4]
    where = ["--base-url", stack.api, "--api-key", KEY]
    listed = [sys.executable, "-m", "tidemill", "list", "--json", "--limit", "5", *where]
    shown = subprocess.run(listed, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=True).stdout
    assert first in shown
    assert second in shown
