"""The dashboard with the keyboard, a screen reader, on a phone, and in forced colours."""

import re

import pytest
from playwright.sync_api import expect
from support.dashboard import DESK, FRAMES, PHONE, axe_faults, button, go, rows, tab_to
from support.made_up import CREATED, Listed, batch, file, held, tell, with_events
from support.waiting import wait_until

pytestmark = pytest.mark.e2e

LETTER = {"stage": "ingest", "reason": "It is not JSON.", "topic": "t", "key": "", "bytes": 9, "requeued_at": None}


@pytest.fixture
def page(page):
    """With events of the test alone."""
    with_events(page)
    return page


def letters(page, number):
    """Make up dead letters."""
    made = [{"id": f"t/0/{place}", "at": 1_800_000_000 + place, **LETTER} for place in range(number)]
    answer = {"object": "list", "data": made, "has_more": False}
    page.route("**/v1/admin/dead_letters?*", lambda route: route.fulfill(json=answer))


def test_rows_are_selected_on_a_phone(page):
    """As cards they have a check box each, and the head has one for all, and what sorts them."""
    page.set_viewport_size(PHONE)
    listed = Listed(page, "/files", [file(number) for number in (2, 1)])
    Listed(page, "/batches", [batch(number) for number in (3, 2, 1)])
    letters(page, 2)
    for path, table, number in (
        ("/dead-letters", "Dead letters", 2),
        ("/batches", "Batches", 3),
        ("/files", "Files", 2),
    ):
        go(page, path)
        expect(rows(page, table).get_by_role("checkbox")).to_have_count(number)
        page.get_by_role("table", name=table).get_by_label("Select all rows").check()
        expect(rows(page, table).get_by_role("checkbox", checked=True)).to_have_count(number)
        assert not axe_faults(page), path
    page.route("**/v1/files/*", lambda route: (listed.rows.clear(), route.fulfill(json={})))
    button(page, "Delete 2 files").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("There is no file yet.")).to_be_visible()
    go(page, "/batches")
    page.get_by_role("columnheader", name="Age").get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="Age")).to_have_attribute("aria-sort", "ascending")
    assert page.url.endswith("order=asc")


def test_a_chart_is_a_slider(page):
    """A screen reader says the time and the values of each point, and areas differ in more than their colour."""
    made = batch(1, "completed")
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    points = [{"at": CREATED + at, "completed": at, "failed": 1, "retried": 2, "limit": 5} for at in range(9)]
    page.route("**/throughput", lambda route: route.fulfill(json={"interval_seconds": 1, "data": points}))
    go(page, f"/batches/{made['id']}")
    chart = page.get_by_role("slider", name="Throughput, lines/s")
    expect(page.locator("canvas")).to_be_visible()
    for key, now in (
        ("ArrowLeft", 7),
        ("ArrowDown", 6),
        ("ArrowRight", 7),
        ("Home", 0),
        ("ArrowUp", 1),
        ("End", 8),
    ):
        chart.press(key)
        expect(chart).to_have_attribute("aria-valuenow", str(now))
        said = re.compile(rf"^\d\d:\d\d:\d\d, Completed {now}, Failed 1, Retried 2, Limit 5$")
        expect(chart).to_have_attribute("aria-valuetext", said)
    filled = "all => all.map((one) => getComputedStyle(one).backgroundImage.match(/^none|[\\d.]+deg/)[0])"
    areas = page.locator(".swatch:not(.line)").evaluate_all(filled)
    assert len(set(areas)) == len(areas) == 3
    assert not axe_faults(page)


def focused(page, place):
    """Wait until the focus is on what a CSS selector finds."""
    expect(page.locator(f":is({place}):focus")).to_have_count(1)


def key(number):
    """A key as the API shows it."""
    times = {"created_at": CREATED, "expires_at": None, "revoked_at": None}
    return {
        "id": f"key_{number}",
        "name": f"key {number}",
        "hint": f"sk-{number}",
        "role": "read",
        "project": "p",
        **times,
    }


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
    button(page, "Discard").press("Enter")
    focused(page, "h1")
    button(page, "Dismiss").press("Enter")
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
    for key in "j" * 32 + "k" * 32:
        page.keyboard.press(key)
        assert not page.evaluate(COVERED)
    focused(page, "[title='batch 90']")
    page.keyboard.press("Escape")
    page.evaluate("scrollTo(0, 1010)")
    page.evaluate(FRAMES)
    page.keyboard.press("j")
    assert not page.evaluate(COVERED)
    assert page.evaluate("scrollY") == 1010
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") < 92 + 92


def test_an_absent_service_is_said_once(page):
    """The age of what is shown changes, and the alert does not."""
    page.clock.install()
    page.reload()
    listed = Listed(page, "/batches", [batch(1)])
    go(page, "/batches")
    expect(rows(page, "Batches")).to_have_count(1)
    listed.answer = lambda route: route.abort()
    tell(page, "reset", object="reset")
    expect(page.get_by_role("alert")).to_have_text("The service does not answer.")
    page.evaluate("""() => {
      globalThis.changes = 0;
      const all = { childList: true, characterData: true, subtree: true };
      const watcher = new MutationObserver((found) => { changes += found.length; });
      watcher.observe(document.querySelector('[role=alert]'), all);
    }""")
    age = page.get_by_text("What you see is from").locator("time")
    for _ in range(3):
        before = age.inner_text()
        page.clock.fast_forward(6_000)
        expect(age).not_to_have_text(before)
    assert page.evaluate("changes") == 0


def test_forced_colours_hide_no_state(page):
    """Bars keep their colours, and the present tab and the open row stand out."""
    made = batch(1)
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    letters(page, 2)
    page.emulate_media(forced_colors="active")
    go(page, f"/batches/{made['id']}")
    style = "(one, name) => getComputedStyle(one)[name]"
    bar = page.locator(".bar")
    assert bar.evaluate(style, "backgroundColor") != bar.locator(".done").evaluate(style, "backgroundColor")
    tabs = page.get_by_role("navigation", name="Parts of the batch").get_by_role("link")
    lines = [tab.evaluate(style, "borderBottomColor") for tab in tabs.all()]
    assert sorted(map(lines.count, set(lines))) == [1, len(lines) - 1]
    go(page, "/dead-letters?letter=t/0/1")
    expect(rows(page, "Dead letters")).to_have_count(2)
    outlines = [row.evaluate(style, "outlineStyle") for row in rows(page, "Dead letters").all()]
    assert outlines == ["none", "solid"]


HEBREW = "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}\N{HEBREW LETTER GIMEL}!"
"""Ends at the left: the exclamation mark is the last character."""
ENDS = """(element) => {
  const text = document.createTreeWalker(element, NodeFilter.SHOW_TEXT).nextNode();
  return [0, text.length - 1].map((place) => {
    const range = document.createRange();
    range.setStart(text, place);
    range.setEnd(text, place + 1);
    return range.getBoundingClientRect().left;
  });
}"""
"""Where the first and the last character of an element begin."""


def test_texts_stand_in_the_direction_of_their_language(page):
    """Names and prompts from right to left; also in fields, while they are typed."""
    made = batch(1, tidemill={"name": HEBREW}, request_counts={"total": 1, "completed": 1, "failed": 0})
    Listed(page, "/batches", [made])
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    answer = {"choices": [{"message": {"role": "assistant", "content": HEBREW}}]}
    result = {"custom_id": "r", "response": {"status_code": 200, "body": answer}}
    line = {"index": 0, "status": "completed", "result": result}
    page.route(
        "**/results?*", lambda route: route.fulfill(json={"data": [line], "has_more": False, "next_after": 0})
    )
    go(page, "/batches")
    link = page.get_by_role("link", name=HEBREW)
    expect(link).to_be_visible()
    first, last = link.evaluate(ENDS)
    assert last < first
    go(page, f"/batches/{made['id']}?tab=lines&line=1")
    for text in (page.locator(".batch-title"), page.locator(".panel .prose").last):
        expect(text).to_have_text(HEBREW)
        first, last = text.evaluate(ENDS)
        assert last < first
    page.get_by_label("Search", exact=True).fill(HEBREW)
    assert page.get_by_label("Search", exact=True).evaluate("field => field.matches(':dir(rtl)')")


def test_rows_have_names(page):
    """Their first column and their check box; a table with more rows to load does not know how many there are."""
    Listed(page, "/batches", [batch(number) for number in range(120, 0, -1)])
    go(page, "/batches")
    table = page.get_by_role("table", name="Batches")
    expect(table).to_have_attribute("aria-rowcount", "-1")
    expect(table.get_by_role("rowheader", name="batch 119")).to_be_visible()
    row = rows(page, "Batches").filter(has=page.get_by_role("checkbox", name="Select batch 119", exact=True))
    expect(row).to_contain_text("batch 119")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(table).to_have_attribute("aria-rowcount", "121")
    page.set_viewport_size(PHONE)
    page.evaluate("scrollTo(0, 0)")
    expect(page.get_by_role("checkbox", name="Select batch 120", exact=True)).to_be_visible()


OUTSIDE = "() => document.activeElement !== document.body && !document.activeElement.closest('.panel')"


def test_tab_stays_in_what_covers_the_page(page):
    """In a panel on a phone, until it is closed or the window gets wide; a menu that Tab leaves closes."""
    page.set_viewport_size(PHONE)
    letters(page, 2)
    page.route(
        "**/v1/admin/dead_letters/*/*/*", lambda route: route.fulfill(json={"id": "t/0/1", "at": 1, **LETTER})
    )
    go(page, "/dead-letters?letter=t/0/1")
    panel, link = page.get_by_role("dialog", name="t/0/1"), rows(page, "Dead letters").first.locator("a")
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
    link.focus()
    expect(link).to_be_focused()
    account = page.locator(".menu", has=page.get_by_label("Account"))
    page.get_by_label("Account").press("Enter")
    tab_to(page, button(page, "Sign out"))
    expect(account).to_have_attribute("open", "")
    page.keyboard.press("Tab")
    expect(account).not_to_have_attribute("open", "")


def test_keys_are_switched_off_and_lose_no_file(page):
    """A word spoken to the machine presses them: off, they do nothing, and on, they do not leave a chosen file."""
    go(page, "/new")
    page.get_by_label("File with a request").set_input_files(
        {"name": "in", "mimeType": "text/plain", "buffer": b"x"}
    )
    expect(button(page, "Discard")).to_be_visible()
    page.keyboard.type("gb")
    alert = page.get_by_role("alert").filter(has_text="discard its file first")
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


def test_a_message_waits_for_its_reader(page):
    """While the pointer or the focus is on it."""
    page.clock.install()
    page.reload()
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
    """So that the next press goes on."""
    made = batch(1, "completed")
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    lines = [
        {"index": n, "status": "completed", "result": {"custom_id": f"r{n}", "response": None}} for n in range(3)
    ]
    page.route(
        "**/results?*", lambda route: route.fulfill(json={"data": lines, "has_more": False, "next_after": 2})
    )
    go(page, f"/batches/{made['id']}?tab=lines&line=1")
    for name in ("r1", "r2"):
        button(page, "Next line").press("Enter")
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        expect(button(page, "Next line")).to_be_focused()
