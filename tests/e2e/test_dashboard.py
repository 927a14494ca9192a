"""The dashboard in a real browser, against the whole service."""

import json
import re

import pytest
from openai import OpenAI
from playwright.sync_api import expect
from support.backend import as_told, well
from support.browser import chromium
from support.stack import KEY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
HOSTILE = """<img src=x onerror="alert(1)"><script>alert(2)</script>"""
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    """One for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, stack):
    """The dashboard, signed in, in a tab of its own: nothing may fail in it, and nothing come from elsewhere."""
    root = stack.api.removesuffix("/v1")
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    faults, elsewhere = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith((root, "blob:")) else elsewhere.append(asked.url)
    )
    page.goto(root)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    yield page
    assert (faults, elsewhere) == ([], [])
    context.close()


@pytest.fixture
def client(stack):
    """The official SDK."""
    return OpenAI(base_url=stack.api, api_key=KEY)


def chats(path, *stops, user="hello"):
    """Write an input with one chat for each of `stops`."""
    with path.open("w", encoding="utf-8") as file:
        for number, stop in enumerate(stops):
            body = {
                "model": "chat",
                "messages": [{"role": "user", "content": f"{user} {path.parent.name} {number}"}],
            }
            body |= {"stop": stop} if stop else {}
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}) + "\n")
    return path


def started(client, path, **metadata):
    """A batch of a file."""
    with path.open("rb") as file:
        made = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=made.id, endpoint=CHAT, completion_window="24h", metadata=metadata or None
    )


def opened(page, batch_id):
    """Go to the page of a batch."""
    page.goto(re.sub(r"#.*", "", page.url) + f"#/batches/{batch_id}")


def state(page, word):
    """Wait until the batch of the page is in a state."""
    expect(page.locator("h1 .pill")).to_have_text(word)


def test_a_wrong_key_is_told(browser, stack):
    """And nothing is kept of it."""
    page = browser.new_page()
    page.goto(stack.api.removesuffix("/v1"))
    page.get_by_label("API key").fill("sk-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")
    assert page.evaluate("sessionStorage.length") == 0
    page.close()


def test_a_file_becomes_a_batch_and_its_results(page, client, backend, tmp_path):
    """Without a line of code: choose, see the estimate, start, watch, look into a line, download, check."""
    backend.rule = as_told
    page.get_by_role("link", name="New batch").click()
    page.get_by_label("File with a request").set_input_files(chats(tmp_path / "in.jsonl", None, None, None))
    page.get_by_label("Name").fill("from the page")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("dl")).to_contain_text("Lines3")
    page.get_by_role("button", name="Start").click()
    state(page, "completed")
    expect(page.locator("h1")).to_contain_text("from the page")
    expect(page.locator("#receipt")).to_contain_text("3 lines in = 3 out + 0 errors; 0 missing, 0 double")
    page.locator("#lines").get_by_role("button", name="2", exact=True).click()
    expect(page.locator("#lines pre").nth(1)).to_contain_text('"custom_id": "r1"')
    with page.expect_download() as download:
        page.get_by_role("button", name="Output").click()
    batch = client.batches.retrieve(page.url.rsplit("/", 1)[1])
    assert download.value.path().read_bytes() == client.files.content(batch.output_file_id).content
    page.get_by_role("link", name="Usage").click()
    expect(page.locator("tbody")).to_contain_text("chat")


def test_what_failed_is_told_and_run_again(page, client, backend, tmp_path):
    """By code, with samples; the counts lead to the lines; the failed ones become a batch of their own."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse", "refuse"))
    opened(page, batch.id)
    state(page, "completed")
    page.locator("#errors summary").click()
    expect(page.locator("#errors")).to_contain_text("r2")
    page.get_by_role("link", name="2 failed").click()
    expect(page.locator("#lines tbody tr:not(.whole)")).to_have_count(2)
    backend.reset(well)
    page.get_by_role("button", name="Rerun unfinished lines").click()
    expect(page.locator("#about")).to_contain_text(batch.id)
    state(page, "completed")
    expect(page.locator("#progress")).to_contain_text("2 completed")


def test_a_batch_is_watched_and_cancelled(page, client, backend, tmp_path):
    """The list shows it without being loaded again; a cancel asks first."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait", "wait"), name=f"of {tmp_path.name}")
    page.get_by_role("link", name=f"of {tmp_path.name}").click()
    state(page, "queued")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    page.get_by_role("link", name="Batches").click()
    page.get_by_label("State").select_option("cancelled")
    expect(page.locator("tbody")).to_contain_text(batch.id)
    page.get_by_label("State").select_option("validating")
    expect(page.get_by_text("No batch is validating.")).to_be_visible()


def test_an_input_that_was_refused_says_why(page, client, tmp_path):
    """Each fault with its line."""
    path = chats(tmp_path / "in.jsonl", None, None)
    path.write_text(path.read_text("utf-8").replace('"r1"', '"r0"'), "utf-8")
    opened(page, started(client, path).id)
    state(page, "failed")
    expect(page.locator("#notes li")).to_contain_text("line 2")


def test_what_users_send_is_text(page, client, backend, tmp_path):
    """Names, ids and answers that are pages of their own stay what they are: nothing of them runs."""
    backend.rule = as_told
    page.on("dialog", lambda dialog: pytest.fail(f"it ran: {dialog.message}"))
    path = chats(tmp_path / "in.jsonl", None, "refuse", user=HOSTILE)
    path.write_text(path.read_text("utf-8").replace('"r0"', json.dumps(HOSTILE)), "utf-8")
    opened(page, started(client, path, name=HOSTILE, **{HOSTILE[:40]: HOSTILE}).id)
    state(page, "completed")
    expect(page.locator("h1")).to_contain_text(HOSTILE)
    expect(page.locator("#lines code").first).to_have_text(HOSTILE)
    page.locator("#lines").get_by_role("button", name="1", exact=True).click()
    page.get_by_role("link", name="Batches").click()
    expect(page.locator("tbody")).to_contain_text(HOSTILE)
    assert page.locator("main img, main script").count() == 0
