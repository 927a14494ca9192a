"""Rules for every page of the dashboard: it is accessible, fits the window, and renders only rows in sight."""

import json

import pytest
from openai import OpenAI
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import (
    DESK,
    HOSTILE,
    PHONE,
    axe_faults,
    chats,
    cut,
    go,
    rows,
    signed_in,
    started,
    state,
)
from support.stack import KEY
from support.waiting import wait_until

pytestmark = pytest.mark.e2e

BYTES_MAX = 250_000
"""Bytes that a page loads, uncompressed and without data."""
ROWS_MAX = 120
"""Rows of a table that exist at one time: those in sight, and some beyond."""
REQUESTS_MAX = 60
"""Requests to open the page of a batch, including its modules."""


def twice(path):
    """Give both lines of an input one `custom_id`, so that ingest refuses it."""
    path.write_text(path.read_text("utf-8").replace('"r1"', '"r0"'), "utf-8")
    return path


@pytest.fixture(scope="module")
def made(stack, inference, tmp_path_factory):
    """Batches to look at, by name: one with failed lines, one that is refused, and a long one; and the rest."""
    inference.reset(as_told)
    client = OpenAI(base_url=stack.api, api_key=KEY)
    path = tmp_path_factory.mktemp("pages") / "in.jsonl"
    batches = {
        "mixed": started(
            client, chats(path, None, "refuse", None), name="A batch with a failed line", team="docs"
        ),
        "again": started(client, chats(path, None, None, None)),
        "long": started(client, chats(path, *[None] * 3_000)),
        "refused": started(client, twice(chats(path, None, None))),
    }
    client.files.create(file=(HOSTILE, path.read_bytes()), purpose="batch")
    client.post("/admin/keys", body={"name": HOSTILE}, cast_to=object)
    client.webhooks.create(name=HOSTILE, url="https://hooks.invalid/x", event_types=["batch.failed"])
    ids = {name: batch.id for name, batch in batches.items()}

    def ended():
        return all(client.batches.retrieve(one).status in {"completed", "failed"} for one in ids.values())

    wait_until(ended, "end of the batches")
    # Its row has a word more than others.
    client.post(f"/batches/{ids['mixed']}/rerun", body={"lines": "failed"}, cast_to=object)
    yield ids
    inference.reset()


def paths(ids):
    """Every page, with each tab of a batch, the panel of a line, and pages that are empty."""
    batch = f"/batches/{ids['mixed']}"
    yield from (
        "/",
        "/batches",
        "/batches?status=expired&endpoint=/v1/none",
        "/batches?trouble=failures",
        "/new",
        "/usage",
        "/nowhere",
    )
    yield from ("/files", "/servers", "/servers?kind=model", "/queues", "/webhooks", "/keys", "/audit")
    yield from ("/dead-letters", "/settings", "/projects", f"/replay?batch={ids['mixed']}", "/replay?of=log")
    yield from (f"{batch}?tab={tab}" for tab in ("failures", "lines", "timeline", "receipt", "request", "raw"))
    yield from (f"{batch}?tab=lines&line=1", f"/batches/{ids['refused']}", f"/batches/{ids['long']}")
    yield from (f"/compare?left={ids['mixed']}&right={ids['again']}{more}" for more in ("", "&line=r1"))


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_every_page_is_accessible_and_fits(page, made, size):
    """axe-core finds no fault in either theme, pages fit, texts of users stay text, and facts have values."""
    page.set_viewport_size(size)
    for path in paths(made):
        go(page, path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("status", name="Loading")).to_have_count(0)
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        assert not axe_faults(page), path
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        # Themes differ in colours only.
        assert not axe_faults(page, "color-contrast"), path
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], path
        assert page.locator("main img, main script").count() == 0, path
        assert "" not in page.locator("dd").all_inner_texts(), path


def test_nothing_that_counts_is_cut(page, made):
    """States, numbers and figures are whole, and every column is in sight."""
    for path in paths(made):
        go(page, path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("status", name="Loading")).to_have_count(0)
        assert cut(page) == [], path


def test_a_long_batch_opens_with_what_is_in_sight(browser, root, made):
    """The page loads lines page by page, and only rows in sight exist, also at the end of the list."""
    with signed_in(browser, root, viewport=DESK) as page:
        asked = []
        go(page, f"/batches/{made['long']}?tab=lines")
        state(page, "completed")
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        state(page, "completed")
        lines = rows(page, "Lines")
        expect(lines.first).to_contain_text("r0")
        assert lines.count() <= ROWS_MAX
        assert len(asked) <= REQUESTS_MAX
        assert sum("/results?" in url for url in asked) <= 2
        while not lines.filter(has_text="r2999").count():
            page.mouse.wheel(0, 30_000)
            expect(lines.first).to_be_visible()
        assert lines.count() <= ROWS_MAX


def test_a_page_is_light(browser, root, made):
    """A first visit loads little, so that it opens fast over a slow line."""
    with signed_in(browser, root) as signed:
        page, loaded = signed.context.new_page(), {}
        page.route("**/*", lambda route: route.continue_())  # without the browser's cache
        page.on("response", lambda answer: loaded.setdefault(answer.url, answer))
        page.goto(f"{root}/dashboard/#/batches/{made['mixed']}")
        state(page, "some lines failed")
        sizes = {url: len(answer.body()) for url, answer in list(loaded.items()) if "/dashboard/" in url}
        assert any(url.endswith("main.js") for url in sizes)
        assert sum(sizes.values()) <= BYTES_MAX, sizes


def test_texts_of_users_are_not_run(browser, root, stack, backend, tmp_path):
    """Names, ids, metadata, prompts and answers that contain HTML are shown as text."""
    backend.rule = as_told
    path = chats(tmp_path / "in.jsonl", None, "refuse", user=HOSTILE)
    path.write_text(path.read_text("utf-8").replace('"r0"', json.dumps(HOSTILE)), "utf-8")
    batch = started(OpenAI(base_url=stack.api, api_key=KEY), path, name=HOSTILE, **{HOSTILE[:40]: HOSTILE})
    with signed_in(browser, root) as page:
        go(page, f"/batches/{batch.id}?tab=lines&line=1")
        state(page, "some lines failed")
        expect(page.locator("h1")).to_contain_text(HOSTILE)
        expect(page.get_by_role("dialog", name=HOSTILE)).to_contain_text(f"echo: {HOSTILE}")
        for path, shown in (
            (f"/batches/{batch.id}?tab=request", f"metadata.{HOSTILE[:40]}"),
            (f"/compare?left={batch.id}&right={batch.id[:-1]}", HOSTILE),
            ("/batches", HOSTILE),
            ("/", HOSTILE),
        ):
            go(page, path)
            expect(page.get_by_role("main")).to_contain_text(shown)
            assert page.locator("main img, main script").count() == 0
