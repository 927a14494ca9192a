"""The project is in the address: a link opens in its project, and Back returns to it."""

import re
import time

import pytest
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import HIDE, PHONE, axe_faults, button, chats, go, rows, signed_in, started, state
from support.stack import KEY

pytestmark = pytest.mark.e2e

OTHER = "linked"
DAY = 86_400


@pytest.fixture
def secret(client):
    """A key that may write in another project alone."""
    made = client.post("/admin/keys", body={"name": "of another", "project": OTHER}, cast_to=object)
    yield made["secret"]
    client.delete(f"/admin/keys/{made['id']}", cast_to=object)


@pytest.fixture
def ended(client, backend, tmp_path):
    """A batch of the project `default` that has ended."""
    backend.rule = as_told
    return started(client, chats(tmp_path / "in.jsonl", None), name="linked to").id


@pytest.fixture
def tab(browser, root, secret):
    """An operator's tab, with a session of its own."""
    del secret
    with signed_in(browser, root) as tab:
        yield tab


def shows(page, project):
    """Wait until the page and its address are in a project."""
    expect(page.get_by_role("combobox", name="Project")).to_have_value(project)
    expect(page).to_have_url(re.compile(rf"/dashboard/\?project={project}(#.*)?$"))


def test_a_link_opens_in_its_project(tab, root, ended):
    """Whatever the session's project is; Back and Forward lead through projects, too."""
    shows(tab, "default")
    go(tab, f"/batches/{ended}")
    state(tab, "completed")
    link = tab.url
    tab.get_by_role("combobox", name="Project").select_option(OTHER)
    shows(tab, OTHER)
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    go(tab, "/batches")
    expect(tab.get_by_role("main").get_by_text("There is no batch yet.")).to_be_visible()
    tab.goto(link)
    state(tab, "completed")
    shows(tab, "default")
    tab.go_back()
    shows(tab, OTHER)
    expect(tab.get_by_role("main").get_by_text("There is no batch yet.")).to_be_visible()
    tab.go_back()
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    tab.go_back()
    state(tab, "completed")
    shows(tab, "default")
    tab.goto(f"{root}/dashboard/#/files")
    shows(tab, "default")


def test_a_tab_keeps_its_project(tab):
    """One in sight follows another tab, and says so; one out of sight returns to its project later."""
    go(tab, "/batches")
    shows(tab, "default")
    other = tab.context.new_page()
    other.goto(tab.url.replace("default", OTHER))
    for page in (tab, other):
        shows(page, OTHER)
    expect(tab.get_by_text(f"Another tab has gone to the project {OTHER}. Back returns.")).to_be_visible()
    tab.go_back()
    for page in (tab, other):
        shows(page, "default")
    other.evaluate(HIDE, True)
    tab.get_by_role("combobox", name="Project").select_option(OTHER)
    shows(tab, OTHER)
    expect(other.get_by_role("main")).to_have_count(0)
    tab.evaluate(HIDE, True)
    other.evaluate(HIDE, False)
    shows(other, "default")
    expect(tab.get_by_role("main")).to_have_count(0)
    tab.evaluate(HIDE, False)
    shows(tab, OTHER)
    other.close()


def test_a_project_that_may_not_be_seen(browser, root, secret):
    """The page says so, and offers the own project, or another key; no project is shown in its place."""
    with signed_in(browser, root, secret) as tab:
        own = f"{root}/dashboard/?project={OTHER}#/batches"
        expect(tab.get_by_role("link", name="Usage")).to_be_visible()
        expect(tab.get_by_role("link", name="Projects")).to_have_count(0)
        expect(tab).to_have_url(re.compile(rf"\?project={OTHER}$"))
        for project in ("default", "<b>no</b>"):
            tab.goto(own.replace(OTHER, project))
            expect(tab.get_by_role("heading", name=f"The project {project} cannot be shown")).to_be_visible()
            expect(tab.get_by_role("main")).to_contain_text("which the key of another may not see.")
            assert rows(tab, "Batches").count() == 0
        for size in (PHONE, tab.viewport_size):
            tab.set_viewport_size(size)
            assert not axe_faults(tab)
        button(tab, f"Go to {OTHER}").click()
        expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
        expect(tab).to_have_url(re.compile(rf"\?project={OTHER}#/$"))
        tab.go_back()
        button(tab, "Sign out").click()
        tab.get_by_label("API key").fill(KEY)
        button(tab, "Sign in").click()
        shows(tab, "default")


def test_a_link_waits_for_the_sign_in(browser, root, secret, ended):
    """And for a service that does not open its project now."""
    del secret
    with signed_in(browser, root) as tab:
        link = f"{root}/dashboard/?project={OTHER}#/batches"
        tab.route(
            "**/dashboard/session/project",
            lambda route: route.fulfill(status=503, json={"error": {"message": "Away."}}),
        )
        tab.goto(link)
        expect(tab.get_by_role("main")).to_contain_text("Away.")
        tab.unroute_all()
        button(tab, "Try again").click()
        shows(tab, OTHER)
        tab.context.clear_cookies()
        tab.goto(f"{root}/dashboard/?project=default#/batches/{ended}")
        tab.get_by_label("API key").fill(KEY)
        button(tab, "Sign in").click()
        state(tab, "completed")
        shows(tab, "default")


def test_an_operator_sees_all_projects(tab, client, ended):
    """Each with what it used today, and a link to its overview."""
    go(tab, f"/batches/{ended}")
    state(tab, "completed")
    go(tab, "/projects")
    own, other = (rows(tab, "Projects").filter(has_text=re.compile(f"^{name}")) for name in ("default", OTHER))
    today = {"start_time": int(time.time()) // DAY * DAY}
    [total] = client.get("/usage", cast_to=object, options={"params": today})["data"]
    expect(own.get_by_role("cell").nth(1)).to_have_text(f"{total['batches']:,}")
    expect(own.get_by_role("cell").nth(0)).not_to_have_text("0")
    expect(other).to_have_text(f"{OTHER}0000")
    other.get_by_role("link", name=OTHER).click()
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    shows(tab, OTHER)
    tab.go_back()
    expect(own).to_be_visible()
    shows(tab, "default")
