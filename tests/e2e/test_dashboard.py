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
WIDTH = 390
"""Of a phone, in pixels."""


@pytest.fixture(scope="module")
def browser():
    """One for all tests of this file."""
    with chromium() as browser:
        yield browser


def signed_in(page, root, key=KEY):
    """Type in a key."""
    page.goto(root)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()


@pytest.fixture
def page(browser, stack):
    """The dashboard, signed in, in a tab of its own: nothing may fail in it, and nothing come from elsewhere."""
    root = stack.api.removesuffix("/v1")
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    faults, elsewhere = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith((root, "blob:")) else elsewhere.append(asked.url)
    )
    signed_in(page, root)
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


def started(client, path, *, window="24h", **metadata):
    """A batch of a file."""
    with path.open("rb") as file:
        made = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=made.id, endpoint=CHAT, completion_window=window, metadata=metadata or None
    )


def opened(page, batch_id):
    """Go to the page of a batch."""
    page.goto(re.sub(r"#.*", "", page.url) + f"#/batches/{batch_id}")


def state(page, word):
    """Wait until the batch of the page is in a state."""
    expect(page.locator("h1 .pill")).to_have_text(word)


def test_a_wrong_key_is_an_error(browser, stack):
    """The page stores nothing, and keeps the typed key for a correction."""
    page = browser.new_page()
    page.goto(stack.api.removesuffix("/v1"))
    page.get_by_label("API key").fill("sk-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")
    assert page.evaluate("sessionStorage.length") == 0
    assert page.get_by_label("API key").input_value() == "sk-wrong"
    page.close()


def test_run_a_file_in_the_browser(page, client, backend, tmp_path):
    """Choose it, see the estimate, start, watch, open a line, download, check."""
    backend.rule = as_told
    page.get_by_role("link", name="New batch").click()
    page.get_by_label("File with a request").set_input_files(chats(tmp_path / "in.jsonl", None, None, None))
    page.get_by_label("Name").fill("from the page")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("dl")).to_contain_text("Lines3")
    page.get_by_role("button", name="Start").click()
    state(page, "completed")
    expect(page.locator("h1")).to_contain_text("from the page")
    expect(page.locator("#receipt")).to_contain_text("3 lines in = 3 out + 0 errors; 0 missing, 0 duplicate")
    page.locator("#lines").get_by_role("button", name="2", exact=True).click()
    expect(page.locator("#lines pre").nth(1)).to_contain_text('"custom_id": "r1"')
    with page.expect_download() as download:
        page.get_by_role("button", name="Output").click()
    batch = client.batches.retrieve(page.url.rsplit("/", 1)[1])
    assert download.value.path().read_bytes() == client.files.content(batch.output_file_id).content
    page.get_by_role("link", name="Usage").click()
    expect(page.locator("tbody")).to_contain_text("chat")


def test_a_message_batch_is_shown_like_any_other(page, client):
    """With the texts of its answers."""
    params = {"model": "chat", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    requests = [{"custom_id": "first", "params": params}]
    made = client.post("/messages/batches", body={"requests": requests}, cast_to=dict)
    opened(page, made["id"])
    state(page, "completed")
    expect(page.locator("#lines tbody")).to_contain_text("echo: hello")
    expect(page.locator("dl").filter(has_text="Endpoint")).to_contain_text("/v1/messages")


def test_failed_lines_are_grouped_and_rerun(page, client, backend, tmp_path):
    """By code, with samples; the counts lead to the lines; the failed ones become a new batch."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse", "refuse"))
    opened(page, batch.id)
    state(page, "some lines failed")
    page.locator("#errors summary").click()
    expect(page.locator("#errors")).to_contain_text("r2")
    page.get_by_role("link", name="2 failed").click()
    expect(page.locator("#lines tbody tr:not(.whole)")).to_have_count(2)
    backend.reset(well)
    page.get_by_role("button", name="Rerun 2 unfinished lines").click()
    expect(page.locator("#about").get_by_title(batch.id)).to_be_visible()
    state(page, "completed")
    expect(page.locator("#progress")).to_contain_text("2 completed")


def test_watch_and_cancel_a_batch(page, client, backend, tmp_path):
    """The list updates itself; a cancel asks for confirmation."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait", "wait"), name=f"of {tmp_path.name}")
    page.get_by_role("link", name=f"of {tmp_path.name}").click()
    state(page, "queued")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    page.get_by_role("link", name="Batches").click()
    page.get_by_label("State").focus()
    page.get_by_label("State").select_option("cancelled")
    expect(page.locator("tbody").get_by_title(batch.id)).to_be_visible()
    expect(page.get_by_label("State")).to_be_focused()
    page.get_by_label("State").select_option("validating")
    expect(page.get_by_text("No batch is validating.")).to_be_visible()


def test_the_faults_of_an_invalid_input(page, client, tmp_path):
    """Each with its line."""
    path = chats(tmp_path / "in.jsonl", None, None)
    path.write_text(path.read_text("utf-8").replace('"r1"', '"r0"'), "utf-8")
    opened(page, started(client, path).id)
    state(page, "failed")
    expect(page.locator("#notes li")).to_contain_text("line 2")


def test_texts_of_users_are_not_run(page, client, backend, tmp_path):
    """Names, ids and answers that contain HTML are shown as text."""
    backend.rule = as_told
    page.on("dialog", lambda dialog: pytest.fail(f"it ran: {dialog.message}"))
    path = chats(tmp_path / "in.jsonl", None, "refuse", user=HOSTILE)
    path.write_text(path.read_text("utf-8").replace('"r0"', json.dumps(HOSTILE)), "utf-8")
    opened(page, started(client, path, name=HOSTILE, **{HOSTILE[:40]: HOSTILE}).id)
    state(page, "some lines failed")
    expect(page.locator("h1")).to_contain_text(HOSTILE)
    expect(page.locator("#lines code").first).to_have_text(HOSTILE)
    page.locator("#lines").get_by_role("button", name="1", exact=True).click()
    page.get_by_role("link", name="Batches").click()
    expect(page.locator("tbody")).to_contain_text(HOSTILE)
    assert page.locator("main img, main script").count() == 0


def test_an_error_of_an_action_stays(page, client, backend, tmp_path):
    """Until it is dismissed, also while the page polls."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait"))
    opened(page, batch.id)
    state(page, "queued")
    page.route("**/cancel", lambda route: route.abort())
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    for _ in range(2):
        with page.expect_response(re.compile(f"{batch.id}$")):
            pass
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    client.batches.cancel(batch.id)
    state(page, "cancelled")


def test_a_reader_sees_no_actions(browser, stack, client, backend, tmp_path):
    """Neither a new batch nor a cancel nor a rerun, but everything that it may read."""
    backend.rule = as_told
    made = client.post("/admin/keys", body={"name": "reader", "role": "read"}, cast_to=object)
    running = started(client, chats(tmp_path / "in.jsonl", "wait"))
    failed = started(client, chats(tmp_path / "in.jsonl", "refuse"))
    page = browser.new_page()
    signed_in(page, stack.api.removesuffix("/v1"), made["secret"])
    expect(page.get_by_role("link", name="New batch")).to_be_hidden()
    opened(page, failed.id)
    state(page, "all lines failed")
    expect(page.get_by_role("button", name="Failed lines")).to_be_visible()
    expect(page.get_by_role("button", name="Rerun")).to_have_count(0)
    opened(page, running.id)
    state(page, "queued")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.close()
    client.batches.cancel(running.id)


def test_pending_lines_are_not_shown_as_missing(page, client, tmp_path):
    """While results are pending, the page says how many are done; an unknown id has no lines at all."""
    batch = started(client, chats(tmp_path / "in.jsonl", None, None), name="lines late")
    held = []
    page.route("**/results?*", lambda route: held.insert(0, route))
    opened(page, batch.id)
    state(page, "completed")
    expect(page.locator("#lines .empty")).to_have_text("2 lines are done, and show here within seconds.")
    held[0].continue_()
    expect(page.locator("#lines tbody tr:not(.whole)")).to_have_count(2)
    expect(page).to_have_title("completed · lines late · Tidemill")
    opened(page, "batch_" + "0" * 32)
    expect(page.get_by_role("heading", name="There is no such batch")).to_be_visible()
    expect(page.get_by_text("No line")).to_have_count(0)


def test_completion_windows(page, client, backend, tmp_path):
    """The user chooses one; after an expiry the page offers to rerun the expired lines."""
    backend.rule = as_told
    page.get_by_role("link", name="New batch").click()
    expect(page).to_have_title("New batch · Tidemill")
    page.get_by_label("File with a request").set_input_files(chats(tmp_path / "in.jsonl", "wait", "wait"))
    page.get_by_label("Completion window").select_option("4s")
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("button", name="Start").click()
    state(page, "expired")
    assert client.batches.retrieve(page.url.rsplit("/", 1)[1]).completion_window == "4s"
    expect(page.get_by_role("button", name="Rerun 2 unfinished lines")).to_be_visible()


def test_jump_to_a_line(page, client, tmp_path):
    """By its number, which the address keeps."""
    batch = started(client, chats(tmp_path / "in.jsonl", *[None] * 120))
    opened(page, batch.id)
    state(page, "completed")
    page.get_by_label("From line").fill("117")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#lines code")).to_have_text(["r116", "r117", "r118", "r119"])
    assert page.url.endswith("?line=117")
    page.get_by_label("From line").fill("121")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#lines .empty")).to_have_text("From line 121 on, no line was run.")
    page.get_by_role("link", name="All lines").click()
    expect(page.locator("#lines code").first).to_have_text("r0")


def test_back_restores_the_list(page, client, tmp_path):
    """With its scroll position; Enter on a batch puts no ring around the page."""
    page.set_viewport_size({"width": 1000, "height": 300})
    for number in range(8):
        started(client, chats(tmp_path / "in.jsonl", None), name=f"back {number}")
    link = page.get_by_role("link", name="back 1")
    link.focus()
    link.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    assert before > 0
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("back 1")
    assert page.evaluate("getComputedStyle(document.querySelector('main')).outlineStyle") == "none"
    page.go_back()
    expect(page.get_by_role("link", name="back 1")).to_be_visible()
    page.wait_for_function("y => Math.abs(scrollY - y) < 2", arg=before)


def test_the_state_on_a_phone(page, client, backend, tmp_path):
    """Nothing is cut off, in the list and on the page of a batch; names are shown, and ids are short."""
    backend.rule = as_told
    page.set_viewport_size({"width": WIDTH, "height": 844})
    name = f"a name that is as long as people make them {tmp_path.name}"
    batch = started(client, chats(tmp_path / "in.jsonl", "refuse"), name=name)
    row = page.locator("tbody tr", has=page.get_by_title(batch.id))
    expect(row.locator(".pill")).to_have_text("all lines failed")
    expect(row).to_contain_text(name)
    expect(row).to_contain_text(batch.id[-8:])
    expect(row).not_to_contain_text(batch.id)
    assert ends(row.locator(".pill")) <= WIDTH
    row.get_by_role("link").click()
    state(page, "all lines failed")
    assert ends(page.locator("h1 .pill")) <= WIDTH
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    colour = page.evaluate("getComputedStyle(document.querySelector('h1 .pill')).color")
    assert colour == "rgb(179, 38, 30)"


def ends(locator):
    """Where an element ends on the right, in pixels."""
    box = locator.bounding_box()
    return box["x"] + box["width"]


def test_a_copied_address_opens_signed_in(page, client, tmp_path):
    """In another tab of the same browser; signing out in one signs out in all."""
    opened(page, started(client, chats(tmp_path / "in.jsonl", None), name="copied").id)
    state(page, "completed")
    other = page.context.new_page()
    other.goto(page.url)
    state(other, "completed")
    other.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    state(page, "completed")
    third = page.context.new_page()
    third.goto(page.url)
    state(third, "completed")
    assert other.evaluate("sessionStorage.length") == 0
    third.close()
    other.close()
