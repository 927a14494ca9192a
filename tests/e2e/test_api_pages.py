"""The examples of docs/reference/api, run as they are printed, page by page, against the whole service."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import sdk
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX

PAGES = sorted(path for path in (sdk.ROOT / "docs" / "reference" / "api").glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODELS = {"wordllama-256": "embed", "smollm2-135m-instruct": "chat"}
"""The demo's models, which the pages name, and what serves for them here."""

pytestmark = pytest.mark.e2e


def blocks(page: Path, *languages: str) -> str:
    """A page's examples in a language, as one program."""
    found = (code for language, code in BLOCK.findall(page.read_text("utf-8")) if language in languages)
    program = "\n".join(found)
    for name, other in MODELS.items():
        program = program.replace(name, other)
    return program


def run(command: list[str], stack: Stack, folder: Path) -> None:
    """Run an example as a user of this installation."""
    environ = {"PATH": os.environ["PATH"], "OPENAI_BASE_URL": stack.api, "OPENAI_API_KEY": KEY, "NO_PROXY": "*"}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_resource_has_a_page():
    """With examples."""
    assert {"files", "uploads", "batches", "models", "errors"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_in_curl(stack, backend, tmp_path, page):
    """In a shell that stops at the first fault."""
    del backend
    if program := blocks(page, "sh"):
        run(["bash", "-euo", "pipefail", "-c", program], stack, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_in_python(stack, backend, tmp_path, page):
    """With the official SDK."""
    del backend
    if program := blocks(page, "python"):
        run([sys.executable, "-c", program], stack, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_in_typescript(stack, backend, tmp_path, page):
    """With the official SDK; they use no types, so Node runs them as they are."""
    del backend
    node = sdk.node("24.19.0", "openai7")
    if program := blocks(page, "ts"):
        # A module finds its packages from where it lies.
        source = node.folder / f"page-{page.stem}.mjs"
        source.write_text(program, "utf-8")
        run([str(node.binary), str(source)], stack, tmp_path)
