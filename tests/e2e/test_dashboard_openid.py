"""Sign-in with OpenID Connect in a real browser, at a real provider; and the switch of projects."""

import json
import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import DESK, PHONE, axe_faults, button, chats, go, rows, signed_in, started, state
from support.openid import attack, openid_provider

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def issuer(stack):
    """The provider that the installation names."""
    port = urlsplit(json.loads(stack.environ["TIDEMILL_OPENID"])["issuer"]).port
    origin = stack.api.removesuffix("/v1")
    with openid_provider(port, f"{origin}/dashboard/sign-in/callback") as issuer:
        yield issuer


@pytest.fixture
def tab(browser, root, issuer):
    """A tab of a new browser context, which is not signed in; the provider runs."""
    assert issuer
    with browser.new_context(viewport=DESK) as context:
        page = context.new_page()
        page.goto(f"{root}/dashboard/#/batches")
        yield page


def enter(tab, person):
    """Sign in at the provider, with the keyboard alone."""
    link = tab.get_by_role("link", name="Sign in with 127.0.0.1")
    expect(link).to_be_focused()
    tab.keyboard.press("Enter")
    tab.get_by_placeholder("Enter any login").fill(person)
    tab.get_by_placeholder("and password").fill("any")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Continue").click()


def test_from_the_sign_in_to_the_download(tab, root, backend, tmp_path):
    """As a person of two projects: the audit trail names the person; the sign-out goes on at the provider."""
    backend.rule = as_told
    enter(tab, "ada")
    expect(tab.get_by_role("heading", name="Batches")).to_be_visible()
    expect(tab.get_by_label("Project", exact=True)).to_have_value("research")
    tab.get_by_role("banner").get_by_role("link", name="New batch").click()
    tab.get_by_label("File with a request").set_input_files(chats(tmp_path / "in.jsonl", None, None))
    button(tab, "Start 2 lines").click()
    state(tab, "completed")
    tab.locator("summary", has_text="Download").click()
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Output JSONL").click()
    assert len(download.value.path().read_text("utf-8").splitlines()) == 2
    tab.get_by_label("Project", exact=True).select_option("default")
    expect(tab.get_by_role("heading", name="Overview")).to_be_visible()
    expect(tab.get_by_role("link", name="New batch")).to_have_count(0)
    tab.get_by_label("Account").click()
    expect(tab.get_by_role("main")).to_be_visible()
    expect(tab.locator(".who")).to_contain_text("ada@example.com, role read")
    button(tab, "Sign out").click()
    tab.get_by_role("button", name="Yes, sign me out").click()
    expect(tab.get_by_role("link", name="Sign in with 127.0.0.1")).to_be_visible()
    assert tab.url.startswith(f"{root}/dashboard/")


@pytest.mark.parametrize(
    ("person", "forgery", "words"),
    [("eve", None, "has no access yet"), ("ada", "wrong nonce", "is not valid. Tell your operator.")],
)
def test_a_refused_sign_in_is_explained(tab, issuer, person, forgery, words):
    """On the page, with the id of the request, in both sizes; a reload forgets it."""
    if forgery:
        attack(issuer, forgery)
    enter(tab, person)
    expect(tab.get_by_role("alert")).to_contain_text(words)
    expect(tab.get_by_role("alert")).to_contain_text(re.compile("Request req_"))
    for size in (DESK, PHONE):
        tab.set_viewport_size(size)
        assert not axe_faults(tab)
    tab.reload()
    expect(tab.get_by_label("API key")).to_be_visible()
    expect(tab.get_by_role("alert")).to_have_count(0)


def test_an_operator_goes_to_another_project(browser, root, client, backend, tmp_path):
    """Every tab shows its batches, and an address leads to no batch of another project."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None), name="of the default project")
    client.post("/admin/keys", body={"name": "n", "project": "elsewhere", "role": "read"}, cast_to=object)
    with signed_in(browser, root, viewport=DESK) as page:
        go(page, "/batches")
        expect(rows(page, "Batches").filter(has_text="of the default project").first).to_be_visible()
        other = page.context.new_page()
        other.goto(page.url)
        expect(rows(other, "Batches").first).to_be_visible()
        page.get_by_label("Project", exact=True).select_option("elsewhere")
        for each in (page, other):
            expect(each.get_by_text("No batch yet.", exact=False)).to_be_visible()
        go(page, f"/batches/{batch.id}")
        expect(page.get_by_role("heading", name="There is no such batch")).to_be_visible()
        page.set_viewport_size(PHONE)
        page.get_by_label("Account").click()
        page.get_by_label("Project", exact=True).select_option("default")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        go(page, f"/batches/{batch.id}")
        expect(page.locator("h1")).to_contain_text("of the default project")
        other.close()
