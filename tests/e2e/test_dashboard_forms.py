"""Fields and forms of the dashboard: what counts, when it counts, and which field is wrong."""

import re

import pytest
from playwright.sync_api import expect
from support.dashboard import axe_faults, button, chats, choose, go, rows, started, state, watched
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


def test_a_text_counts_though_its_address_changes(page, ended):
    """Escape closes the panel of a line, and the field beside it stays on its page."""
    go(page, f"/batches/{ended}?tab=lines&line=1")
    expect(page.locator(".panel")).to_be_visible()
    field = page.get_by_label("From line")
    field.fill("2")
    field.press("Escape")
    expect(page.locator(".panel")).to_have_count(0)
    expect(field).to_have_value("2")
    field.press("Tab")
    expect(rows(page, "Lines")).to_have_count(2)


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
    field.fill("abc")
    field.press("Enter")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.press("Escape")
    page.get_by_label("Add a filter").click()
    expect(field).to_have_value("")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_have_count(0)
    field.fill("team=docs")
    field.press("Tab")
    expect(button(page, "Remove the filter Metadata team=docs")).to_be_visible()


def test_a_lost_estimate_does_not_stop_the_start(page, tmp_path):
    """The page asks for it again, also by a button, and needs it as little as the service does."""
    go(page, "/new")
    page.route("**/v1/files", lambda route: route.abort(), times=1)
    choose(page, chats(tmp_path / "in.jsonl", None, None))
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    expect(button(page, "Start")).to_be_disabled()
    page.route("**/v1/batches/estimate", lambda route: route.abort())
    button(page, "Try again").click()
    expect(button(page, "Start")).to_be_enabled()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    page.unroute_all()
    expect(button(page, "Start 2 lines")).to_be_enabled()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_lost_plan_does_not_stop_the_rerun(page, ended):
    """It may start without, and with the plan once that has come, but not after a refusal."""
    go(page, f"/batches/{ended}")
    state(page, "completed")
    button(page, "Rerun").click()
    dialog = page.get_by_role("dialog", name="Rerun lines")
    expect(dialog.get_by_role("alert")).to_be_visible()
    expect(button(page, "Rerun lines")).to_be_disabled()
    expect(button(page, "Try again")).to_have_count(0)
    page.route("**/rerun", lambda route: route.abort())
    dialog.get_by_label("Lines").select_option("all")
    expect(dialog.get_by_role("alert")).to_have_text("The service does not answer.")
    expect(button(page, "Rerun lines")).to_be_enabled()
    with page.expect_request("**/rerun"):
        button(page, "Try again").click()
    page.unroute_all()
    expect(button(page, "Rerun 3 lines")).to_be_enabled()


def is_wrong(field, words):
    """Wait until a field says what is wrong with it, and has the focus."""
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(words)


def test_a_refused_field_is_marked(page, tmp_path):
    """On a page and in a dialog: by the parameter that the API refuses, until the user changes it."""
    go(page, "/new")
    choose(page, chats(tmp_path / "in.jsonl", None, None))
    page.get_by_label("Metadata").fill("team")
    is_wrong(page.get_by_label("Metadata"), "Each line needs a name, = and a value.")
    page.get_by_label("Metadata").fill("")
    callback = page.get_by_label("Callback URL")
    callback.fill("nowhere")
    button(page, "Start 2 lines").click()
    is_wrong(callback, re.compile("callback_url"))
    expect(callback).to_be_focused()
    expect(page.get_by_role("alert")).to_have_count(1)
    callback.fill("https://")
    expect(callback).not_to_have_attribute("aria-invalid", "true")
    button(page, "Discard").click()
    go(page, "/keys")
    button(page, "New key").click()
    dialog = page.get_by_role("dialog", name="New key")
    dialog.get_by_label("Name", exact=True).fill("of a test")
    dialog.get_by_label("Project").fill("not a name/")
    button(page, "Create a key").click()
    is_wrong(dialog.get_by_label("Project"), re.compile("project"))
    expect(dialog.get_by_role("alert")).to_have_count(1)
    assert not axe_faults(page)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    go(page, "/queues")
    expect(page.locator("main #project")).to_be_visible()
    expect(page.locator("[aria-invalid=true]")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_from_line_takes_a_number(page, ended):
    """The field says so, whether the text was typed or stood in the address."""
    go(page, f"/batches/{ended}?tab=lines&from=abc")
    field = page.get_by_label("From line")
    is_wrong(field, re.compile("^A whole number"))
    for text in ("-5", "1,200", "0"):
        field.fill("2")
        field.press("Enter")
        expect(rows(page, "Lines")).to_have_count(2)
        expect(field).not_to_have_attribute("aria-invalid", "true")
        field.fill(text)
        field.press("Enter")
        is_wrong(field, re.compile("^A whole number"))
        assert page.url.endswith("from=2")


def test_a_second_wrong_key_is_told_again(browser, root):
    """The same words come anew, so that a screen reader says them, and describe the field."""
    with browser.new_context() as context, watched(context, root) as page:
        page.goto(root)
        field = page.get_by_label("API key")
        field.fill("sk-wrong")
        button(page, "Sign in").click()
        is_wrong(field, re.compile("^Incorrect API key.*The dashboard can do"))
        page.get_by_role("alert").evaluate("said => { globalThis.said = said; }")
        button(page, "Sign in").click()
        page.wait_for_function("() => !said.isConnected")
        is_wrong(field, re.compile("^Incorrect API key"))
