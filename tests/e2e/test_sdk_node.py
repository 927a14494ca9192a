"""The official TypeScript SDK, on the Node versions that it needs, against the whole service."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support import sdk
from support.backend import Backend, as_told
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("runtime", "source"), [("20.18.0", "openai6"), ("24.19.0", "openai7")])
def test_the_typescript_sdk_does_all_that_it_can(
    stack: Stack, backend: Backend, tmp_path: Path, runtime: str, source: str
) -> None:
    """Upload, batches of every endpoint, lists, cancel, delete, and every kind of error."""
    backend.rule = as_told
    node = sdk.node(runtime, source)
    # A module finds its packages from where it lies.
    scenario = shutil.copy(sdk.NODE_SOURCES / "scenario.mjs", node.folder)
    command = [str(node.binary), str(scenario), stack.api, KEY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
