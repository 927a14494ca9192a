"""The dashboard with the keyboard, a screen reader, on a phone, and in forced colours."""

import pytest
from playwright.sync_api import expect
from support.dashboard import PHONE, axe_faults, button, go, rows
from support.made_up import Listed, batch, file, with_events

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
