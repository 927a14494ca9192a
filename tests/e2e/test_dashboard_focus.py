"""The dashboard by keyboard: where the focus goes when its element does, and what keys and Tab reach."""

import pytest
from playwright.sync_api import expect
from support.dashboard import DESK, FRAMES, PHONE, axe_faults, button, go, rows, signed_in, tab_to
from support.made_up import CREATED, LETTER, Listed, batch, file, held, key, letters, with_events
from support.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def page(page):
    """With events of the test alone."""
    with_events(page)
    return page


def focused(page, place):
    """Wait until the focus is on what a CSS selector finds."""
    expect(page.locator(f":is({place}):focus")).to_have_count(1)


def confirmed(page, first, name):
    """Press a button, and the one of its question."""
    button(page, first).press("Enter")
    page.get_by_role("dialog").get_by_role("button", name=name).press("Enter")
    expect(page.locator("dialog")).to_have_count(0)


def test_the_focus_stays_near_a_row_that_goes(page):
    """Its action, what was selected, and a row out of sight leave the focus on the table, or on the heading."""
    listed = Listed(page, "/admin/keys", [key(2), key(1)])
    revoked = {**key(2), "revoked_at": CREATED}
    page.route(
        "**/v1/admin/keys/key_2", lambda route: (listed.rows.__setitem__(0, revoked), route.fulfill(json={}))
    )
    go(page, "/keys")
    confirmed(page, "Revoke key 2", "Revoke sk-2")
    focused(page, "[role=table]")
    listed = Listed(page, "/files", [file(number) for number in range(80, 0, -1)])
    page.route("**/v1/files/*", lambda route: (listed.rows.pop(0), route.fulfill(json={})))
    go(page, "/files")
    box = rows(page, "Files").first.get_by_role("checkbox")
    box.check()
    button(page, "Clear").press("Enter")
    focused(page, "h1")
    box.check()
    confirmed(page, "Delete 1 file", "Delete 9 B")
    expect(rows(page, "Files").first).to_contain_text("file 79")
    focused(page, "h1")
    box.focus()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    focused(page, "[role=table]")


def test_the_focus_stays_near_a_control_that_goes(page):
    """A filter, a heading that sorts, a chosen file, a message."""
    Listed(page, "/batches", [batch(1)])
    go(page, "/batches?status=in_progress")
    button(page, "Remove the filter State in progress").press("Enter")
    focused(page, "[aria-label=Filters]")
    asked = held(page, "**/v1/batches?*")
    age = page.get_by_role("columnheader", name="Age").get_by_role("button")
    age.press("Enter")
    wait_until(lambda: asked or page.evaluate("0"), "the list in the other order")
    expect(page.get_by_role("status", name="Loading")).to_be_visible()
    page.evaluate(FRAMES)
    expect(age).to_be_focused()
    page.unroute("**/v1/batches?*")
    go(page, "/new")
    page.get_by_label("File with a request").focus()
    page.get_by_label("File with a request").set_input_files(
        {"name": "in", "mimeType": "text/plain", "buffer": b"x"}
    )
    expect(page.get_by_role("region", name="in", exact=True)).to_be_visible()
    focused(page, "h1")
    page.keyboard.type("gb")
    button(page, "Dismiss").press("Enter")  # A refusal stays until then.
    focused(page, "h1")
    button(page, "Discard").press("Enter")
    focused(page, "h1")


def test_the_focus_stays_near_a_dialog(page):
    """Inside, if its content is replaced; then where it was before, or beside that."""
    page.route("**/v1/admin/keys", lambda route: route.fulfill(json={**key(1), "secret": "sk-made-up"}))
    go(page, "/keys")
    button(page, "New key").press("Enter")
    page.get_by_label("Name", exact=True).fill("of a test")
    button(page, "Create a key").press("Enter")
    expect(page.get_by_label("The key")).to_be_visible()
    focused(page, "dialog")
    button(page, "Done").press("Enter")
    expect(button(page, "New key")).to_be_focused()
    page.get_by_label("Account").press("Enter")
    button(page, "Keyboard").press("Enter")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    focused(page, "[aria-label=Account]")


COVERED = """() => {
  const row = document.activeElement.closest('[data-row]');
  const { left, top, bottom } = row.getBoundingClientRect();
  return [top + 2, bottom - 2].some((y) => !row.contains(document.elementFromPoint(left + 60, y)));
}"""
"""Whether something lies above the row of the focus."""


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_keyboard_moves_to_rows_in_sight(page, size):
    """Not to rows behind a bar, and from the first one in sight after the page was scrolled."""
    page.set_viewport_size(size)
    Listed(page, "/batches", [batch(number) for number in range(90, 0, -1)])
    go(page, "/batches")
    expect(rows(page, "Batches").first).to_be_visible()
    for letter in "j" * 32 + "k" * 32:
        page.keyboard.press(letter)
        assert not page.evaluate(COVERED)
    focused(page, "[title='batch 90']")
    page.keyboard.press("Escape")
    page.evaluate("scrollTo(0, 1010)")
    page.evaluate(FRAMES)
    page.keyboard.press("j")
    assert not page.evaluate(COVERED)
    assert page.evaluate("scrollY") == 1010
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") < 92 + 92


def lines(page):
    """Make up a batch of three lines that have ended, and return the address of its lines."""
    made = batch(1, "completed")
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    ended = [
        {"index": n, "status": "completed", "result": {"custom_id": f"r{n}", "response": None}} for n in range(3)
    ]
    page.route(
        "**/results?*", lambda route: route.fulfill(json={"data": ended, "has_more": False, "next_after": 2})
    )
    return f"/batches/{made['id']}?tab=lines"


OUTSIDE = "() => document.activeElement !== document.body && !document.activeElement.closest('.panel')"


def test_tab_stays_in_what_covers_the_page(page):
    """In a panel on a phone, until it is closed or the window gets wide; a menu that Tab leaves closes."""
    page.set_viewport_size(PHONE)
    letters(page, 2)
    page.route(
        "**/v1/admin/dead_letters/*/*/*", lambda route: route.fulfill(json={"id": "t/0/1", "at": 1, **LETTER})
    )
    go(page, "/dead-letters?letter=t/0/1")
    panel = page.get_by_role("dialog", name="t/0/1")
    expect(panel.get_by_role("button", name="Send it again")).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert not page.evaluate(OUTSIDE)
    page.set_viewport_size(DESK)
    expect(page.locator("[inert]")).to_have_count(0)
    page.set_viewport_size(PHONE)
    expect(page.locator("[inert]")).not_to_have_count(0)
    assert not axe_faults(page)
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    focused(page, "h1")
    expect(page.locator("[inert]")).to_have_count(0)
    account = page.locator(".menu", has=page.get_by_label("Account"))
    page.get_by_label("Account").press("Enter")
    tab_to(page, button(page, "Sign out"))
    expect(account).to_have_attribute("open", "")
    page.keyboard.press("Tab")
    expect(account).not_to_have_attribute("open", "")


def test_tab_stays_in_a_panel_opened_by_its_address(page):
    """Also from what the page has put behind it since, as its rows."""
    page.set_viewport_size(PHONE)
    go(page, f"{lines(page)}&line=1")
    expect(page.get_by_role("dialog", name="r0")).to_be_visible()
    expect(page.locator("[data-row]")).to_have_count(3)
    for _ in range(12):
        page.keyboard.press("Tab")
        assert not page.evaluate(OUTSIDE)
    page.keyboard.press("Escape")
    expect(page.locator("[inert]")).to_have_count(0)


def test_keys_are_switched_off_and_lose_no_file(page):
    """A word spoken to the machine presses them: off, they do nothing, and on, they do not leave a chosen file."""
    go(page, "/new")
    page.get_by_label("File with a request").set_input_files(
        {"name": "in", "mimeType": "text/plain", "buffer": b"x"}
    )
    expect(button(page, "Discard")).to_be_visible()
    alert = page.get_by_role("alert").filter(has_text="discard its file first")
    page.keyboard.type("n")
    page.evaluate(FRAMES)
    expect(alert).to_have_count(0)
    page.keyboard.type("gb")
    expect(alert).to_be_visible()
    assert page.url.endswith("/new")
    button(page, "Discard").click()
    page.get_by_label("Account").click()
    page.get_by_role("group", name="Shortcuts").get_by_label("Off").check()
    page.keyboard.press("Escape")
    expect(page.locator(".menu[open]")).to_have_count(0)
    page.keyboard.type("?gb/")
    page.get_by_label("Account").click()
    page.get_by_role("group", name="Shortcuts").get_by_label("On").check()
    page.keyboard.press("Escape")
    assert page.url.endswith("/new")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.type("gb")
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()


def test_a_message_waits_for_its_reader(browser, root):
    """While the pointer or the focus is on it."""
    with signed_in(browser, root, viewport=DESK) as page:  # the clock belongs to the context
        page.clock.install()
        with_events(page)
        go(page, "/new")
        page.get_by_label("File with a request").set_input_files(
            {"name": "in", "mimeType": "text/plain", "buffer": b"x"}
        )
        button(page, "Discard").click()
        told = page.get_by_role("status").filter(has_text="Discarded.")
        told.hover()
        page.clock.fast_forward(7_000)
        expect(told).to_be_visible()
        button(page, "Dismiss").focus()
        page.mouse.move(5, 300)
        page.clock.fast_forward(7_000)
        expect(told).to_be_visible()
        page.get_by_label("Account").focus()
        page.clock.fast_forward(7_000)
        expect(told).to_have_count(0)


def test_the_next_line_leaves_the_focus_on_its_button(page):
    """So that the next press goes on; a line is said, whatever opens it."""
    go(page, f"{lines(page)}&line=1")
    for name in ("r1", "r2"):
        button(page, "Next line").press("Enter")
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        expect(button(page, "Next line")).to_be_focused()
    page.get_by_role("link", name="r1").press("Enter")
    expect(page.get_by_role("dialog", name="r1")).to_be_visible()
    expect(page.locator("[role=status].unseen").last).to_have_text("Line 2")
