"""Tables of the dashboard: no figure is cut, and the menu of columns says which have no room."""

import time

import pytest
from playwright.sync_api import expect
from support.dashboard import DESK, PHONE, axe_faults, cut, go, rows
from support.made_up import Listed, batch, file, with_events

pytestmark = pytest.mark.e2e


@pytest.fixture
def page(page):
    """Without events."""
    with_events(page)
    return page


def test_the_columns_menu_says_what_has_no_room(page):
    """A column that gives way is not ticked; a tick shows it all the same. A phone has no columns to choose."""
    Listed(page, "/batches", [batch(1)])
    go(page, "/batches")
    menu, heading = page.get_by_label("Columns", exact=True), page.get_by_role("columnheader", name="Progress")
    choice = page.locator(".choice").filter(has_text="Progress")
    expect(rows(page, "Batches")).to_have_count(1)
    menu.click()
    expect(choice).to_have_text("Progress")
    expect(choice.get_by_role("checkbox")).to_be_checked()
    page.set_viewport_size({"width": 1024, "height": 800})
    expect(heading).to_have_count(0)
    expect(choice).to_have_text("Progressno room")
    expect(choice.get_by_role("checkbox")).not_to_be_checked()
    assert not axe_faults(page)
    choice.get_by_role("checkbox").check()
    expect(heading).to_be_visible()
    expect(choice).to_have_text("Progress")
    page.set_viewport_size(PHONE)
    expect(rows(page, "Batches")).to_contain_text("batch 1")
    expect(menu).to_have_count(0)
    page.set_viewport_size(DESK)
    # The choice outlives the page, which other tests share.
    page.evaluate("localStorage.removeItem('tidemill-columns-batches')")


LONGEST = {"total": 10_000_000, "completed": 5_555_555, "failed": 4_444_444}
DEAREST = "444444.44"


def widest_batches():
    """Batches with the widest figures of each column, made at different times."""
    now = int(time.time())
    for number, age in enumerate([59, 59 * 60 + 30, 23 * 3600 + 60, 444 * 86_400], 1):
        few = {"total": 10_000_000, "completed": 1, "failed": 0}
        counts = LONGEST if number % 2 else few
        cost = {"cost": {"total": DEAREST}}
        times = {"created_at": now - age, "expires_at": now - age + 31 * 86_400}
        yield batch(number, request_counts=counts, tidemill=cost, **times)


def widest_usage():
    """Sums of a year on a large cluster."""
    sums = {"batches": 444_444, "lines": 4_444_444_444, "input_tokens": 4 * 10**12, "output_tokens": 4 * 10**12}
    return {"object": "list", "data": [{"model": "m" * 60, "cost": {"total": DEAREST}} | sums], "has_more": False}


def test_no_figure_is_cut(page):
    """However large: a cut number would read as another number."""
    Listed(page, "/batches", list(widest_batches()))
    Listed(page, "/files", [file(number) | {"bytes": 1023 * 1024**number} for number in range(3)])
    page.route("**/v1/usage?*", lambda route: route.fulfill(json=widest_usage()))
    page.reload()
    for path, table in (
        ("/", "Batches at work"),
        ("/batches", "Batches"),
        ("/files", "Files"),
        ("/usage", "Usage"),
    ):
        go(page, path)
        expect(rows(page, table).first).to_be_visible()
        assert cut(page) == [], path
