"""The tutorials and how-to guides, run as they are printed, on the demo's models.

With `SCREENSHOTS=1` the pictures of the dashboard in docs/images are taken anew (`make screenshots`).
"""

import os
import shlex
import sys
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import expect
from support import snippets
from support.dashboard import signed_in
from support.stack import KEY, Stack

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for kind in ("tutorials", "how-to")
    for page in sorted((ROOT / "docs" / kind).glob("*.md"))
    if any(block.is_run for block in snippets.snippets(page))
]
IMAGES = ROOT / "docs" / "images"
PICTURES = {
    "batch": ("first-batch", "many.jsonl", "", "2,000"),
    "lines": ("extract-to-a-schema", "mails.jsonl", "?tab=lines&line=3", "Jo Silva"),
}
"""For each picture the tutorial of its batch, the batch's input, what to open, and a text that is there."""
DELETED = {"anonymise": b"tom.reed@example.com"}
"""A text that only this page has, in the input that it deletes."""
SIZE = {"width": 1440, "height": 900}

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder of a reader who has started `tidemill up` without a model."""
    folder = tmp_path_factory.mktemp("reader")
    programs = folder / "bin"
    programs.mkdir()
    for name, command in (("python", ""), ("tidemill", " -m tidemill")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{command} "$@"\n')
        (programs / name).chmod(0o755)
    with Stack(folder / ".tidemill", {}) as stack:
        yield folder, stack


def follow(page, folder, place):
    """Run a page in a place of its own, beside the data of the service."""
    folder, stack = folder
    (place / ".tidemill").symlink_to(folder / ".tidemill")
    environ = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(place),
        "TIDEMILL_API_KEY": KEY,
        "OPENAI_BASE_URL": stack.api,
        "OPENAI_API_KEY": KEY,
    }
    snippets.run(page, place, environ)


def holding(place, text):
    """The files below a folder that contain a text."""
    return [path for path in place.rglob("*") if path.is_file() and text in path.read_bytes()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed(folder, page, tmp_path):
    """Each command ends well, and shows what the page says; no text that it deletes is left in the store."""
    follow(page, folder, tmp_path)
    store = folder[0] / ".tidemill" / "store"
    assert holding(store, b"")
    if (text := DELETED.get(page.stem)) is not None:
        assert holding(store, text) == []


@pytest.mark.parametrize("name", PICTURES)
def test_the_dashboard_shows_what_the_pictures_show(folder, browser, tmp_path, name):
    """The batch of a tutorial; the pictures are taken from here."""
    page_name, file_name, part, text = PICTURES[name]
    client = OpenAI(base_url=folder[1].api, api_key=KEY)

    def found():
        files = [file.id for file in client.files.list(purpose="batch") if file.filename == file_name]
        return [batch.id for batch in client.batches.list() if batch.input_file_id in files]

    if not found():
        follow(ROOT / "docs" / "tutorials" / f"{page_name}.md", folder, tmp_path)
    root = folder[1].api.removesuffix("/v1")
    with signed_in(browser, root, viewport=SIZE, color_scheme="light", reduced_motion="reduce") as page:
        page.goto(f"{root}/dashboard/#/batches/{found()[0]}{part}")
        expect(page.get_by_text(text).first).to_be_visible()
        if os.environ.get("SCREENSHOTS"):
            page.wait_for_load_state("networkidle")
            page.screenshot(path=IMAGES / f"{name}.png")
    assert (IMAGES / f"{name}.png").exists()
