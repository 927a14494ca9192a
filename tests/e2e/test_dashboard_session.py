"""The dashboard while it is not known who is signed in, or while its own files do not come."""

import re

import pytest
from playwright.sync_api import expect
from support.dashboard import HIDE, WATCH, axe_faults, button, go, signed_in
from support.made_up import held
from support.waiting import wait_until

pytestmark = pytest.mark.e2e

SESSION = "**/dashboard/session"
TELL = "project => new BroadcastChannel('tidemill-session').postMessage(project)"
"""What another tab says once the session is in a project."""
COUNT = """() => {
  const ask = fetch;
  globalThis.asked = 0;
  globalThis.fetch = (...given) => ((asked += given[0].includes('/session')), ask(...given));
}"""
"""Count how often the page has `asked` for the session."""
OTHER = "linked"


@pytest.fixture
def tab(browser, root, client):
    """An operator's tab, with a session of its own; there are two projects."""
    key = client.post("/admin/keys", body={"name": "of another", "project": OTHER}, cast_to=object)
    with signed_in(browser, root) as tab:
        yield tab
    client.delete(f"/admin/keys/{key['id']}", cast_to=object)


def is_away(page):
    """Wait until the page says that the service is away, in place of a sign-in."""
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    expect(page.get_by_label("API key")).to_have_count(0)


def test_a_lost_look_at_the_session_is_taken_again(tab):
    """The page comes back on load, by itself and by a button, and the user stays signed in."""
    tab.route(SESSION, lambda route: route.abort())
    tab.reload()
    is_away(tab)
    assert not axe_faults(tab)
    with tab.expect_event("requestfailed"):
        button(tab, "Try again").click()
    is_away(tab)
    tab.unroute_all()
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()


def test_an_absent_service_is_said_once(tab):
    """The page asks again by itself, says no more of it, and leaves the focus where it is."""
    tab.clock.install()
    tab.route(SESSION, lambda route: route.abort())
    tab.reload()
    is_away(tab)
    button(tab, "Try again").focus()
    tab.evaluate(WATCH, "#app")
    for _ in range(2):
        with tab.expect_event("requestfailed"):
            tab.clock.fast_forward(5_000)
        is_away(tab)
    expect(button(tab, "Try again")).to_be_focused()
    assert tab.evaluate("changes") == 0


def test_a_hidden_tab_leaves_the_session_alone(tab):
    """The project is that of the tab in sight: a hidden one that lost the session waits until it is seen."""
    tab.clock.install()
    tab.route(SESSION, lambda route: route.abort())
    tab.reload()
    is_away(tab)
    tab.evaluate(COUNT)
    tab.evaluate(HIDE, True)
    tab.unroute_all()
    other = tab.context.new_page()
    other.goto(tab.url)
    project = other.get_by_role("combobox", name="Project")
    project.select_option(OTHER)
    expect(other).to_have_url(re.compile(rf"\?project={OTHER}"))
    tab.clock.fast_forward(6_000)
    assert tab.evaluate("asked") == 0
    expect(project).to_have_value(OTHER)
    tab.evaluate(HIDE, False)
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()


@pytest.mark.parametrize("status", [500, 429])
def test_a_half_filled_dialog_stays(tab, status):
    """If the service does not say whether the session goes on."""
    go(tab, "/keys")
    button(tab, "New key").click()
    name = tab.get_by_label("Name", exact=True)
    name.fill("half")
    tab.route(SESSION, lambda route: route.fulfill(status=status, json={"error": {"message": "Away."}}))
    other = tab.context.new_page()
    other.goto(tab.url)
    with tab.expect_response(SESSION):
        other.evaluate(TELL, "default")
    expect(name).to_have_value("half")
    tab.unroute_all()
    with tab.expect_response(SESSION):
        pass
    expect(name).to_have_value("half")


def test_a_project_that_is_not_known_is_not_shown(tab):
    """The session has gone to another project: the page shows nothing of the one before until it has followed."""
    go(tab, "/batches")
    expect(tab.get_by_role("heading", name="Batches")).to_be_visible()
    tab.route(SESSION, lambda route: route.abort())
    other = tab.context.new_page()
    other.goto(tab.url.replace("default", OTHER))
    is_away(tab)
    expect(tab.get_by_role("heading", name="Batches")).to_have_count(0)
    tab.unroute_all()
    expect(tab.get_by_role("combobox", name="Project")).to_have_value(OTHER)
    expect(tab.get_by_role("heading", name="Batches")).to_be_visible()
    expect(tab).to_have_url(re.compile(rf"\?project={OTHER}#/batches$"))


def test_nothing_is_blank(tab):
    """While the service does not say who is signed in, or how one signs in."""
    asked = held(tab, SESSION)
    tab.reload()
    expect(tab.get_by_role("status", name="Loading")).to_be_visible()
    wait_until(lambda: asked or tab.evaluate("0"), "the request")
    asked[0].continue_()
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    tab.unroute_all()
    providers = held(tab, "**/dashboard/sign-in")
    tab.context.clear_cookies()
    tab.reload()
    wait_until(lambda: providers or tab.evaluate("0"), "the request")
    expect(tab.get_by_role("status", name="Loading")).to_be_visible()
    providers[0].continue_()
    expect(tab.get_by_label("API key")).to_be_visible()


def test_a_lost_module_is_told(tab):
    """The page loads until the module comes, and offers to load it again if it does not."""
    lost = re.compile("/dashboard/core/live.js")
    modules = held(tab, lost)
    tab.reload(wait_until="commit")
    expect(tab.get_by_text("Loading …")).to_be_visible()
    wait_until(lambda: modules or tab.evaluate("0"), "the module")
    modules[0].abort()
    expect(tab.get_by_role("alert")).to_contain_text("The dashboard did not load.")
    assert not axe_faults(tab)
    tab.unroute_all()
    button(tab, "Reload").click()
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
