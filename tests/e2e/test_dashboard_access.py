"""The dashboard with the keyboard, a screen reader, on a phone, and in forced colours."""

import re

import pytest
from playwright.sync_api import expect
from support.dashboard import DESK, PHONE, WATCH, axe_faults, button, chats, choose, go, rows, signed_in
from support.made_up import CREATED, Listed, batch, file, held, key, letters, tell, with_events
from support.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def page(page):
    """With events of the test alone."""
    with_events(page)
    return page


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
    expect(page.get_by_role("main").get_by_text("There is no file yet.")).to_be_visible()
    go(page, "/batches")
    page.get_by_role("columnheader", name="Age").get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="Age")).to_have_attribute("aria-sort", "ascending")
    assert page.url.endswith("order=asc")


HIGH = """() => [...document.querySelectorAll('.as-card *')]
  .filter((one) => !one.childElementCount && getComputedStyle(one).display !== 'inline')
  .filter(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight + 1)
  .map((one) => one.innerText)"""
"""Texts of cards that are higher than their place."""


@pytest.mark.parametrize("width", [320, 390])
def test_a_card_shows_its_lines_whole(page, width):
    """Each has the height of one line: a long one ends in dots, and takes no room from the others."""
    page.set_viewport_size({**PHONE, "width": width})
    letters(page, 2)
    go(page, "/dead-letters")
    expect(rows(page, "Dead letters")).to_have_count(2)
    assert page.evaluate(HIGH) == []


def test_a_chart_is_a_slider(page):
    """A screen reader says the time and the values of each point, and areas differ in more than their colour."""
    made = batch(1, "completed")
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    points = [{"at": CREATED + at, "completed": at, "failed": 1, "retried": 2, "limit": 5} for at in range(9)]
    page.route("**/throughput", lambda route: route.fulfill(json={"interval_seconds": 1, "data": points}))
    go(page, f"/batches/{made['id']}")
    chart = page.get_by_role("slider", name="Throughput, lines/s")
    expect(page.locator("canvas")).to_be_visible()
    for arrow, now in (
        ("ArrowLeft", 7),
        ("ArrowDown", 6),
        ("ArrowRight", 7),
        ("Home", 0),
        ("ArrowUp", 1),
        ("End", 8),
    ):
        chart.press(arrow)
        expect(chart).to_have_attribute("aria-valuenow", str(now))
        said = re.compile(rf"^\d\d:\d\d:\d\d, Completed {now}, Failed 1, Retried 2, Limit 5$")
        expect(chart).to_have_attribute("aria-valuetext", said)
    filled = "all => all.map((one) => getComputedStyle(one).backgroundImage.match(/^none|[\\d.]+deg/)[0])"
    areas = page.locator(".swatch:not(.line)").evaluate_all(filled)
    assert len(set(areas)) == len(areas) == 3
    assert not axe_faults(page)


def test_an_absent_service_is_said_once(browser, root):
    """The age of what is shown changes, and the alert does not."""
    with signed_in(browser, root, viewport=DESK) as page:  # the clock belongs to the context
        page.clock.install()
        with_events(page)
        listed = Listed(page, "/batches", [batch(1)])
        go(page, "/batches")
        expect(rows(page, "Batches")).to_have_count(1)
        listed.answer = lambda route: route.abort()
        tell(page, "reset", object="reset")
        expect(page.get_by_role("alert")).to_have_text("The service does not answer.")
        page.evaluate(WATCH, "[role=alert]")
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


def said(page, text):
    """Wait until a screen reader is given a text; there is one place for it that can be heard."""
    expect(page.locator("[role=status].unseen").last).to_have_text(text)


def test_changes_are_said(page):
    """What is copied, how much is selected, what a filter found, what becomes of a file."""
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: {writeText: async () => {}}})")
    page.reload()
    page.route("**/v1/admin/keys", lambda route: route.fulfill(json={**key(1), "secret": "sk-made-up"}))
    Listed(page, "/batches", [batch(2, "completed"), batch(1)])
    go(page, "/batches")
    rows(page, "Batches").first.get_by_role("checkbox").check()
    said(page, "1 selected")
    rows(page, "Batches").first.get_by_role("button", name="copy the id").click()
    said(page, "Copied.")
    for value, text in (
        ("completed", "Batches: 1 row"),
        ("failed", "No batch matches these filters."),
        ("", "Batches: 2 rows"),
    ):
        page.get_by_label("Add a filter").click()
        page.locator("#filter-status").select_option(value)
        said(page, text)
        page.keyboard.press("Escape")
    go(page, "/keys")
    button(page, "New key").click()
    page.get_by_label("Name", exact=True).fill("of a test")
    button(page, "Create a key").click()
    button(page, "Copy").click()
    expect(page.get_by_role("dialog").locator("[role=status].unseen")).to_have_text("Copied.")


def test_what_becomes_of_a_file_is_said(page, tmp_path):
    """That it is uploaded and counted, and then its lines and cost."""
    asked = held(page, "**/v1/batches/estimate")
    go(page, "/new")
    choose(page, chats(tmp_path / "in.jsonl", None, None))
    said(page, "Counting tokens …")
    wait_until(lambda: asked or page.evaluate("0"), "the estimate")
    asked[0].continue_()
    said(page, re.compile("^2 lines, cost "))
