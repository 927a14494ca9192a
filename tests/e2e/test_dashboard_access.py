"""The dashboard with the keyboard, a screen reader, on a phone, and in forced colours."""

import re

import pytest
from playwright.sync_api import expect
from support.dashboard import PHONE, axe_faults, button, go, rows
from support.made_up import CREATED, Listed, batch, file, with_events

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
