"""Fixtures of the dashboard's tests: one installation, one browser, one context."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Page, expect
from support.browser import chromium
from support.dashboard import DESK, sign_in, watched
from support.sharing import end_shared, shared
from support.stack import KEY, Stack

BROWSER, CONTEXT = "browser", "context"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Close the browser before tests that need none: while it is open, this process cannot run an event loop."""
    if BROWSER not in getattr(item, "fixturenames", ()):
        for name in (CONTEXT, BROWSER):
            end_shared(name=name)


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Browser:
    """One for consecutive tests."""
    return shared(request.path.parent, BROWSER, chromium)


@pytest.fixture
def root(stack: Stack) -> str:
    """The address of the service."""
    return stack.api.removesuffix("/v1")


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, root: str) -> Iterator[Page]:
    """The dashboard, signed in, in a tab of its own; all tests share the browser's cache and the session."""
    context = shared(request.path.parent, CONTEXT, lambda: browser.new_context(viewport=DESK))
    with watched(context, root) as page:
        if context.cookies():
            page.goto(root)
            # Until then the address lacks the project.
            expect(page.get_by_role("heading", level=1)).to_be_visible()
        else:
            sign_in(page, root)
        yield page


@pytest.fixture
def client(stack: Stack) -> OpenAI:
    """The official SDK."""
    return OpenAI(base_url=stack.api, api_key=KEY)
