"""The dashboard in a browser: signing in, opening pages, and rules for every page."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch
from playwright.sync_api import Browser, BrowserContext, Locator, Page, ViewportSize, expect
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX

CHAT = "/v1/chat/completions"
WAITING = re.compile("^(queued|stalled)$")
"""The states of a batch without an answer: after some seconds it is stalled."""
DESK: ViewportSize = {"width": 1440, "height": 900}
WIDTHS = (720, 1024, 1280)
"""Of a tablet, and of laptops, in pixels: too narrow for all columns of a table."""
PHONE: ViewportSize = {"width": 390, "height": 844}
CUT = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const edge = (cell) => cell.closest('.table').getBoundingClientRect().right + 1;
  const beyond = all('.table .cell').filter(cell => cell.getBoundingClientRect().right > edge(cell));
  const whole = all('.table .cell.number, .table .cell:has(.state), .figure .value');
  const short = all('.table .batch-name > :first-child').filter(name => name.clientWidth < 64);
  const cut = [...whole, ...short].filter(one => one.scrollWidth > one.clientWidth);
  return [...beyond, ...cut].map(one => one.innerText);
}"""
"""Cells beyond the edge of their table; states, numbers and figures that are cut; names cut to a few letters."""
ROW = 36
"""Pixels of a row, where it is no card."""
FRAMES = "async () => { for (let n = 0; n < 4; n += 1) await new Promise(requestAnimationFrame); }"
"""Frames in which the tables of a window get the columns for which there is room."""
HIDE = """hidden => {
  const get = () => hidden ? 'hidden' : 'visible';
  Object.defineProperty(document, 'visibilityState', {get, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""
"""Put the tab out of sight, or into sight."""
WATCH = """place => {
  globalThis.changes = 0;
  const all = { childList: true, characterData: true, subtree: true };
  const watcher = new MutationObserver((found) => { changes += found.length; });
  watcher.observe(document.querySelector(place), all);
}"""
"""Count the `changes` of what a CSS selector finds."""
HOSTILE = """<img src=x onerror="alert(1)"><script>alert(2)</script>"""
TABS_MAX = 80
"""Presses of Tab that reach everything of a page."""
AXE = Path(__file__).with_name("axe.min.js.gz")
"""axe-core 4.14.1 of Deque Systems, unchanged, under the Mozilla Public License 2.0."""
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"


def sign_in(page: Page, root: str, key: str = KEY) -> None:
    """Type in a key."""
    page.goto(root)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


@contextmanager
def signed_in(browser: Browser, root: str, key: str = KEY, **options: Any) -> Iterator[Page]:
    """A watched page in a context of its own, signed in with a key."""
    with browser.new_context(**options) as context, watched(context, root) as page:
        sign_in(page, root, key)
        yield page


@contextmanager
def watched(context: BrowserContext, root: str) -> Iterator[Page]:
    """A new page, which fails the test at an error, or at a request to another origin."""
    page = context.new_page()
    page.set_default_timeout(1_000 * WAIT_SECONDS_MAX)
    faults: list[str] = []
    elsewhere: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith((root, "blob:")) else elsewhere.append(asked.url)
    )
    page.on("dialog", lambda dialog: faults.append(f"it ran: {dialog.message}"))
    yield page
    assert (faults, elsewhere) == ([], [])
    page.close()


def rows(page: Page, table: str) -> Locator:
    """The rows of a table, without its heading."""
    return page.get_by_role("table", name=table).locator("[data-row]")


def whole(page: Page, table: str, number: int) -> None:
    """Wait until a table has loaded this many rows: those out of sight have their height."""
    expect(page.get_by_role("table", name=table).locator(".body")).to_have_css("height", f"{ROW * number}px")


def button(page: Page, name: str) -> Locator:
    """The button with exactly this name."""
    return page.get_by_role("button", name=name, exact=True)


def go(page: Page, path: str) -> None:
    """Open a page of the dashboard by its path."""
    page.goto(f"{page.url.split('#')[0]}#{path}")


def state(page: Page, word: str | re.Pattern[str]) -> None:
    """Wait until the batch of the page is in a state."""
    expect(page.locator("h1 .state")).to_have_text(word)


def choose(page: Page, path: Path) -> None:
    """Choose a file on the page of a new batch."""
    page.get_by_label("File with a request").set_input_files(path)


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until an element has the focus."""
    expect(target).to_be_visible()
    for _ in range(TABS_MAX):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("Tab does not reach it")


def cut(page: Page) -> list[tuple[int, str]]:
    """What is cut at each of `WIDTHS`."""
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate(FRAMES)
        found += [(width, text) for text in page.evaluate(CUT)]
    return found


def axe_faults(page: Page, *rules: str) -> list[str]:
    """The rules of axe-core that the page breaks, each with the elements; by default of all rules."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(f"{_axe()};0")
    found = page.evaluate("rules => axe.run(document, rules.length ? {runOnly: rules} : {})", list(rules))
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found["violations"]]


@cache
def _axe() -> str:
    source = gzip.decompress(AXE.read_bytes())
    assert hashlib.sha256(source).hexdigest() == AXE_SHA256
    return source.decode()


def chats(path: Path, *stops: str | None, user: str = "hello", text: Callable[[int], str] | None = None) -> Path:
    """Write an input with one chat for each of `stops`; `as_told` answers by them."""
    with path.open("w", encoding="utf-8") as file:
        for number, stop in enumerate(stops):
            said = text(number) if text else f"{user} {path.parent.name} {number}"
            body = {"model": "chat", "messages": [{"role": "user", "content": said}]}
            body |= {"stop": stop} if stop else {}
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}) + "\n")
    return path


def started(client: OpenAI, path: Path, *, window: str = "24h", **metadata: str) -> Batch:
    """Create a batch of a file."""
    with path.open("rb") as file:
        made = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=made.id,
        endpoint=CHAT,
        completion_window=window,  # type: ignore[arg-type]
        metadata=metadata or None,
    )
