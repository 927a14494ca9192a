"""The dashboard in a real browser, against the whole service: what its users do."""

import re

import pytest
from playwright.sync_api import expect
from support.backend import as_told, well
from support.batches import WINDOWS_SHORT
from support.dashboard import (
    HOSTILE,
    WAITING,
    button,
    chats,
    choose,
    go,
    rows,
    sign_in,
    signed_in,
    started,
    state,
    tab_to,
)
from support.stack import KEY

pytestmark = pytest.mark.e2e

WIDTH = 390
"""Width of a phone, in pixels."""


def test_a_wrong_key_is_an_error(browser, root):
    """The page stores nothing, and keeps the typed key for a correction."""
    page = browser.new_page()
    page.goto(root)
    page.get_by_label("API key").fill("sk-wrong")
    button(page, "Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")
    assert page.get_by_label("API key").input_value() == "sk-wrong"
    page.close()


def test_run_a_file_in_the_browser(page, client, backend, tmp_path):
    """Choose it, see its lines and the estimate, start, watch, open a line, download, check."""
    backend.rule = as_told
    page.get_by_role("banner").get_by_role("link", name="New batch").click()
    choose(page, chats(tmp_path / "in.jsonl", None, None, None))
    expect(rows(page, "First lines")).to_have_count(3)
    page.get_by_label("Name").fill("from the page")
    page.get_by_label("Metadata").fill("team=docs")
    button(page, "Start 3 lines").click()
    state(page, "completed")
    expect(page.locator("h1")).to_contain_text("from the page")
    page.get_by_role("link", name="Receipt").click()
    expect(page.get_by_role("main")).to_contain_text("3 lines in = 3 out + 0 errors; 0 missing, 0 duplicate")
    page.get_by_role("link", name="Lines").click()
    rows(page, "Lines").get_by_role("link", name="r1").click()
    panel = page.get_by_role("dialog", name="r1")
    expect(panel).to_contain_text(f"hello {tmp_path.name} 1")
    expect(panel).to_contain_text(f"echo: hello {tmp_path.name} 1")
    expect(panel.get_by_role("definition").filter(has_text=re.compile("^1 call$"))).to_be_visible()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    batch = client.batches.retrieve(re.search("batch_[0-9a-f]+", page.url)[0])
    assert batch.metadata == {"name": "from the page", "team": "docs"}
    page.locator("summary", has_text="Download").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Output JSONL").click()
    assert download.value.path().read_bytes() == client.files.content(batch.output_file_id).content


def test_the_keyboard_alone(browser, root, client, backend, tmp_path):
    """From the sign-in over a new batch to its download, and back through the list."""
    backend.rule = as_told
    with signed_in(browser, root) as page:
        page.get_by_label("Account").click()
        button(page, "Sign out").click()
        tab_to(page, page.get_by_label("API key"))
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        # Without a listener, the browser's own dialog may open before Playwright intercepts it.
        page.on("filechooser", lambda _: None)
        page.keyboard.press("n")
        tab_to(page, page.get_by_label("File with a request"))
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(chats(tmp_path / "in.jsonl", None, None))
        expect(button(page, "Start 2 lines")).to_be_enabled()
        tab_to(page, button(page, "Start 2 lines"))
        page.keyboard.press("Enter")
        state(page, "completed")
        batch_id = re.search("batch_[0-9a-f]+", page.url)[0]
        tab_to(page, page.locator("summary", has_text="Download"))
        page.keyboard.press("Enter")
        tab_to(page, page.get_by_role("link", name="Output JSONL"))
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        output = client.batches.retrieve(batch_id).output_file_id
        assert download.value.path().read_bytes() == client.files.content(output).content
        page.keyboard.press("Escape")
        page.keyboard.type("gb")
        expect(rows(page, "Batches").first).to_be_visible()
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        state(page, "completed")
        assert batch_id in page.url


def test_a_file_is_checked_before_it_is_uploaded(page, tmp_path):
    """The page names the line, the field and what stands there, and sends nothing."""
    path = chats(tmp_path / "in.jsonl", None, None, None)
    lines = path.read_text("utf-8").replace('"custom_id": "r1"', '"custom_id": "r0"').splitlines()
    path.write_text("\n".join([*lines[:2], "{not json", lines[2].replace("POST", HOSTILE.replace('"', ""))]))
    go(page, "/new")
    uploads = []
    page.on("request", lambda asked: uploads.append(asked.url) if asked.url.endswith("/v1/files") else None)
    choose(page, path)
    faults = page.get_by_role("alert")
    expect(faults).to_contain_text("Line 2, custom_id: Line 1 has the same one.")
    expect(faults).to_contain_text("Line 3: The line is not JSON")
    expect(faults).to_contain_text("Line 4, method: It must be POST.")
    expect(button(page, "Start")).to_be_disabled()
    assert not uploads


def test_a_message_batch_is_shown_like_any_other(page, client):
    """With the texts of its answers."""
    params = {"model": "chat", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    requests = [{"custom_id": "first", "params": params}]
    made = client.post("/messages/batches", body={"requests": requests}, cast_to=dict)
    go(page, f"/batches/{made['id']}")
    state(page, "completed")
    expect(rows(page, "Lines")).to_contain_text("echo: hello")
    expect(page.locator("h1")).to_contain_text("/v1/messages")


def test_failed_lines_are_rerun_and_compared(page, client, backend, tmp_path):
    """By code, with samples and advice; the failed ones become a new batch, which is compared with the old one."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse", "refuse"))
    go(page, f"/batches/{batch.id}")
    state(page, "some lines failed")
    failure = page.get_by_role("region", name="test")
    expect(failure).to_contain_text("r2")
    expect(failure).to_contain_text("The server refused the request")
    failure.get_by_role("link", name="Show lines").click()
    expect(rows(page, "Lines")).to_have_count(2)
    backend.reset(well)
    button(page, "Rerun 2 failed lines").click()
    page.get_by_label("Model").select_option("chat")
    button(page, "Rerun 2 lines").click()
    expect(page.locator(".related").get_by_title(batch.id)).to_be_visible()
    state(page, "completed")
    page.get_by_role("link", name="Compare them").click()
    expect(page.get_by_role("region", name="Failed on the left only")).to_contain_text("2")
    expect(page.get_by_text("3 lines compared")).to_be_visible()
    expect(rows(page, "Lines of both")).to_have_count(2)
    rows(page, "Lines of both").get_by_role("link", name="r1").click()
    expect(page.get_by_role("dialog", name="r1")).to_contain_text(f"echo: hello {tmp_path.name} 1")
    page.keyboard.press("Escape")
    page.get_by_label("Lines", exact=True).select_option("Only in one")
    expect(rows(page, "Lines of both")).to_have_count(1)


def test_watch_and_cancel_a_batch(page, client, backend, tmp_path):
    """The list updates itself; a cancel names what it does; a filter stands in the address."""
    backend.rule = as_told
    go(page, "/batches")
    batch = started(client, chats(tmp_path / "in.jsonl", "wait", "wait"), name=f"of {tmp_path.name}")
    page.get_by_role("link", name=f"of {tmp_path.name}").click()
    state(page, WAITING)
    button(page, "Cancel").click()
    button(page, "Cancel 2 lines").click()
    state(page, "cancelled")
    page.get_by_role("link", name="Batches").click()
    page.get_by_label("Add a filter").click()
    page.locator("#filter-status").select_option("cancelled")
    expect(page.get_by_role("button", name=f"{batch.id[-8:]}: copy the id")).to_be_visible()
    assert page.url.endswith("?status=cancelled")
    go(page, "/batches?status=validating")
    expect(page.get_by_role("main").get_by_text("No batch matches these filters.")).to_be_visible()


def test_changes_come_without_polling(page, client, backend, tmp_path):
    """The page of a batch follows the stream of events, also if no other request is answered."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait"))
    go(page, f"/batches/{batch.id}")
    state(page, WAITING)
    page.route(f"**/v1/batches/{batch.id}", lambda route: route.abort())
    client.batches.cancel(batch.id)
    state(page, "cancelled")


def test_cancel_selected_batches(page, client, backend, tmp_path):
    """Of two that wait, with one question."""
    backend.rule = as_told
    names = [f"bulk {number} {tmp_path.name}" for number in range(2)]
    for name in names:
        started(client, chats(tmp_path / "in.jsonl", "wait"), name=name)
    go(page, "/batches")
    for name in names:
        rows(page, "Batches").filter(has_text=name).get_by_role("checkbox", name=f"Select {name}").check()
    button(page, "Cancel 2 batches").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel 2").click()
    for name in names:
        expect(rows(page, "Batches").filter(has_text=name)).to_contain_text("cancelled")


def test_the_faults_of_an_invalid_input(page, client, tmp_path):
    """Each with its line."""
    path = chats(tmp_path / "in.jsonl", None, None)
    path.write_text(path.read_text("utf-8").replace('"r1"', '"r0"'), "utf-8")
    go(page, f"/batches/{started(client, path).id}")
    state(page, "rejected")
    expect(page.get_by_role("alert").filter(has_text="The input was rejected")).to_contain_text("Line 2")


def test_a_file_is_checked_for_its_model_and_prompt(page, tmp_path):
    """A model that is not there and a body without its prompt are among the faults."""
    path = chats(tmp_path / "in.jsonl", None, None)
    one, two = path.read_text("utf-8").splitlines()
    path.write_text(
        one.replace('"model": "chat"', '"model": "chta"') + "\n" + two.replace('"messages"', '"massages"'), "utf-8"
    )
    go(page, "/new")
    choose(page, path)
    said = page.get_by_role("alert").filter(has_text="Tidemill would reject this file")
    expect(said).to_contain_text("Line 1, body.model: There is no such model here.")
    expect(said).to_contain_text("Line 2, body.messages: It is missing.")
    expect(button(page, "Start")).to_be_disabled()


def test_an_error_of_an_action_stays(page, client, backend, tmp_path):
    """Until it is dismissed, also while the page is renewed."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait"))
    go(page, f"/batches/{batch.id}")
    state(page, WAITING)
    page.route("**/cancel", lambda route: route.abort())
    button(page, "Cancel").click()
    button(page, "Cancel 1 line").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    client.batches.cancel(batch.id)
    state(page, "cancelled")
    toast = page.get_by_role("alert").filter(has_text="does not answer")
    expect(toast).to_be_visible()
    toast.get_by_role("button", name="Dismiss").click()
    expect(toast).to_be_hidden()


def test_a_reader_sees_no_actions(browser, root, client, backend, tmp_path):
    """Neither a new batch nor a cancel nor a rerun, but everything that it may read."""
    backend.rule = as_told
    made = client.post("/admin/keys", body={"name": "reader", "role": "read"}, cast_to=object)
    running = started(client, chats(tmp_path / "in.jsonl", "wait"))
    failed = started(client, chats(tmp_path / "in.jsonl", "refuse"))
    with signed_in(browser, root, made["secret"]) as page:
        expect(page.get_by_role("link", name="New batch")).to_have_count(0)
        go(page, f"/batches/{failed.id}")
        state(page, "all lines failed")
        page.locator("summary", has_text="Download").click()
        expect(page.get_by_role("link", name="Failed lines JSONL")).to_be_visible()
        expect(page.get_by_role("button", name="Rerun")).to_have_count(0)
        go(page, f"/batches/{running.id}")
        state(page, WAITING)
        expect(button(page, "Cancel")).to_have_count(0)
    client.batches.cancel(running.id)


def test_pending_lines_are_not_shown_as_missing(page, client, tmp_path):
    """While results are pending, the page says how many are done; an unknown id has no lines at all."""
    batch = started(client, chats(tmp_path / "in.jsonl", None, None), name="lines late")
    held, released = [], []
    page.route("**/results?*", lambda route: route.continue_() if released else held.append(route))
    go(page, f"/batches/{batch.id}")
    state(page, "completed")
    expect(page.get_by_role("status", name="Loading")).to_be_visible()
    released.append(True)
    for route in held:
        route.continue_()
    expect(rows(page, "Lines")).to_have_count(2)
    expect(page).to_have_title("completed · lines late · Tidemill")
    go(page, f"/batches/batch_{'0' * 32}")
    expect(page.get_by_role("heading", name="There is no such batch")).to_be_visible()


def test_completion_windows(page, client, backend, tmp_path):
    """The user chooses one; after an expiry the page offers to rerun the expired lines."""
    backend.rule = as_told
    for window in WINDOWS_SHORT:
        go(page, "/new")
        choose(page, chats(tmp_path / "in.jsonl", "wait", "wait"))
        page.get_by_label("Completion window").select_option(window)
        button(page, "Start 2 lines").click()
        state(page, "expired")
        batch = client.batches.retrieve(re.search("batch_[0-9a-f]+", page.url)[0])
        assert batch.completion_window == window
        if batch.request_counts.total:
            break
    expect(button(page, "Rerun 2 unfinished lines")).to_be_visible()


def test_jump_to_a_line(page, client, tmp_path):
    """By its number, which the address keeps."""
    batch = started(client, chats(tmp_path / "in.jsonl", *[None] * 120))
    go(page, f"/batches/{batch.id}")
    state(page, "completed")
    page.get_by_label("From line").fill("117")
    page.get_by_label("From line").press("Enter")
    expect(rows(page, "Lines")).to_have_count(4)
    expect(rows(page, "Lines").first).to_contain_text("r116")
    assert "from=117" in page.url
    page.get_by_label("From line").fill("121")
    page.get_by_label("From line").press("Enter")
    expect(page.get_by_role("main").get_by_text("From line 121 on, no line has run.")).to_be_visible()


def test_search(page, client, backend, tmp_path):
    """Batches by a part of their metadata, from every page; lines by their text and their `custom_id`."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse", None), team=f"team {tmp_path.name}")
    go(page, "/usage")
    page.keyboard.press("/")
    page.keyboard.type(f"TEAM {tmp_path.name}")
    page.keyboard.press("Enter")
    expect(rows(page, "Batches")).to_have_count(1)
    expect(page.locator("#search")).to_have_value("")
    go(page, f"/batches?search={batch.id[-8:]}")
    expect(rows(page, "Batches")).to_have_count(1)
    rows(page, "Batches").get_by_role("link").click()
    state(page, "some lines failed")
    for search, found in (
        ("contains=TESt+wants", "r1"),
        (f"contains={tmp_path.name}+2", "r2"),
        ("custom_id=r0", "r0"),
    ):
        go(page, f"/batches/{batch.id}?tab=lines&{search}")
        expect(rows(page, "Lines")).to_have_count(1)
        expect(rows(page, "Lines")).to_contain_text(found)
    go(page, f"/batches/{batch.id}?tab=lines&contains=nowhere")
    expect(page.get_by_role("main").get_by_text("No line matches these filters.")).to_be_visible()


def test_back_restores_the_list(page, client, tmp_path):
    """With its scroll position; Enter on a batch puts no ring around the page."""
    page.set_viewport_size({"width": 1000, "height": 300})
    for number in range(8):
        started(client, chats(tmp_path / "in.jsonl", None), name=f"back {number}")
    go(page, "/batches")
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


def test_a_copied_address_opens_signed_in(page, root, client, tmp_path):
    """In another tab of the same browser; signing out in one signs out in all."""
    go(page, f"/batches/{started(client, chats(tmp_path / 'in.jsonl', None), name='copied').id}")
    state(page, "completed")
    other = page.context.new_page()
    other.goto(page.url)
    state(other, "completed")
    other.get_by_label("Account").click()
    button(other, "Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length + document.cookie.length") == 0
    sign_in(other, root)
    other.close()
