"""The official Python SDK, in each version that is in wide use, against the whole service."""

import subprocess
from pathlib import Path

import pytest
from support import sdk
from support.backend import Backend, as_told
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX

SCENARIO = Path(__file__).with_name("scenario.py")

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("version", ["1.109.1", "2.54.0", "3.54.0"])
def test_the_python_sdk_does_all_that_it_can(stack: Stack, backend: Backend, tmp_path: Path, version: str) -> None:
    """Upload, batches of every endpoint, lists, cancel, delete, and every kind of error."""
    backend.rule = as_told
    command = [
        str(sdk.python(version)),
        "-W",
        "error::ResourceWarning",
        str(SCENARIO),
        stack.api,
        KEY,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"openai {version}" in done.stdout
