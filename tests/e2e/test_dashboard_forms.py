"""Fields and forms of the dashboard: what counts, when it counts, and which field is wrong."""

import pytest
from playwright.sync_api import expect
from support.dashboard import button, chats, go, rows, started, state
from support.made_up import Listed, batch

pytestmark = pytest.mark.e2e


@pytest.fixture
def ended(client, tmp_path):
    """A batch of three lines."""
    return started(client, chats(tmp_path / "in.jsonl", None, None, None)).id


def test_a_text_stays_on_its_page(page, ended):
    """Going away takes the focus from its field, and must not put the text into the address of the next page."""
    go(page, "/usage")
    expect(page.get_by_role("heading", name="Usage")).to_be_visible()
    usage = page.url
    go(page, f"/batches/{ended}?tab=timeline")
    state(page, "completed")
    timeline = page.url
    page.get_by_role("link", name="Lines").click()
    expect(rows(page, "Lines")).to_have_count(3)
    page.get_by_label("From line").fill("2")
    page.go_back()
    expect(page.get_by_role("link", name="Timeline")).to_have_attribute("aria-current", "page")
    expect(page.get_by_label("From line")).to_have_count(0)
    assert page.url == timeline
    page.go_forward()
    page.get_by_label("From line").focus()
    page.go_back()
    expect(page.get_by_label("From line")).to_have_count(0)
    assert page.url == timeline
    page.go_forward()
    page.get_by_label("From line").fill("2")
    page.get_by_label("From line").press("Tab")
    expect(rows(page, "Lines")).to_have_count(2)
    page.get_by_label("From line").fill("3")
    page.go_back()
    page.go_back()
    expect(page.get_by_role("heading", name="Usage")).to_be_visible()
    assert page.url == usage


def test_escape_drops_a_filter(page):
    """What was typed does not count, and is not there the next time."""
    Listed(page, "/batches", [batch(1)])
    go(page, "/batches")
    page.get_by_label("Add a filter").click()
    field = page.get_by_label("Metadata", exact=True)
    field.fill("team=docs")
    field.press("Escape")
    expect(page.get_by_label("Add a filter")).to_be_focused()
    assert page.url.endswith("#/batches")
    page.get_by_label("Add a filter").click()
    expect(field).to_have_value("")
    field.fill("team=docs")
    field.press("Tab")
    expect(button(page, "Remove the filter Metadata team=docs")).to_be_visible()
