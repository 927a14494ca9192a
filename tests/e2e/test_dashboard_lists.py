"""Lists of the dashboard that grow by pages and follow events, with answers that the tests make up."""

import re

import pytest
from playwright.sync_api import expect
from support.dashboard import ROW, button, go, rows, whole
from support.made_up import CREATED, Listed, batch, file, tell, with_events
from support.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def page(page):
    """With events of the test alone."""
    with_events(page)
    return page


def to_the_end(page, table, number):
    """Scroll down until all pages are there."""
    whole(page, table, 100)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    whole(page, table, number)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")


def test_a_row_beyond_the_newest_follows_events(page):
    """It takes its new state, leaves with its batch, and is loaded again when events may have been missed."""
    listed = Listed(page, "/batches", [batch(number) for number in range(120, 0, -1)])
    go(page, "/batches")
    to_the_end(page, "Batches", 120)
    row = rows(page, "Batches").filter(has_text=re.compile(r"batch 5\b"))
    expect(row).to_contain_text("in progress")
    tell(page, "batch", **batch(5, "completed"))
    expect(row).to_contain_text("completed")
    tell(page, "batch", id=batch(5)["id"], object="batch", deleted=True)
    expect(row).to_have_count(0)
    whole(page, "Batches", 119)
    listed.rows = [batch(number, "completed") for number in range(120, 0, -1) if number != 5]
    tell(page, "reset", object="reset")
    row = rows(page, "Batches").filter(has_text=re.compile(r"batch 6\b"))
    expect(row).to_contain_text("completed")
    assert {int(query["limit"]) for query in listed.asked} <= set(range(101))


def test_a_row_leaves_a_filter_that_it_does_not_fit(page):
    """Wherever it stands in the list."""
    Listed(page, "/batches", [batch(number) for number in range(120, 0, -1)])
    go(page, "/batches?status=in_progress")
    to_the_end(page, "Batches", 120)
    tell(page, "batch", **batch(5, "completed"))
    whole(page, "Batches", 119)


LATE = {"progress": {"slack_seconds": -60, "percent": 25, "lines_per_second": 1}}
STALLED = {"waiting": [{"reason": "paused", "lines": 3, "message": "It is paused.", "since": CREATED}]}
FAILED = {"total": 4, "completed": 1, "failed": 1}


@pytest.mark.parametrize(
    ("trouble", "words", "fields"),
    [
        ("stalled", "stalled or held", {"tidemill": STALLED}),
        ("late", "late", {"tidemill": LATE}),
        ("failures", "with failures", {"request_counts": FAILED}),
    ],
)
def test_batches_in_trouble(page, trouble, words, fields):
    """The API finds them, and an event moves a batch in or out of the list."""
    listed = Listed(page, "/batches", [batch(number, **fields) for number in (2, 1)])
    go(page, "/batches")
    page.get_by_label("Add a filter").click()
    page.get_by_label("Trouble").select_option(words)
    page.keyboard.press("Escape")
    assert page.url.endswith(f"/batches?trouble={trouble}")
    whole(page, "Batches", 2)
    assert listed.asked[-1]["trouble"] == trouble
    tell(page, "batch", **batch(1))
    whole(page, "Batches", 1)
    listed.rows = [batch(number, **fields) for number in (3, 2)]
    tell(page, "batch", **batch(3, **fields))
    whole(page, "Batches", 2)
    asked = len(listed.asked)
    tell(page, "batch", **batch(4))
    tell(page, "batch", **batch(2))
    whole(page, "Batches", 1)
    assert len(listed.asked) == asked
    button(page, f"Remove the filter Trouble {words}").click()
    expect(page.get_by_role("button", name=re.compile("Remove the filter"))).to_have_count(0)


@pytest.mark.parametrize(("path", "table", "make"), [("/files", "Files", file), ("/batches", "Batches", batch)])
def test_new_rows_take_no_old_ones_away(page, path, table, make):
    """All loaded rows stay, and the next page continues behind them; after a gap only the new rows stay."""
    listed = Listed(page, path, [make(number) for number in range(220, 0, -1)])
    go(page, path)
    whole(page, table, 100)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    whole(page, table, 200)
    listed.rows = [make(number) for number in range(223, 0, -1)]
    kind = listed.rows[0]["object"]
    tell(page, kind, **listed.rows[0])
    whole(page, table, 203)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    whole(page, table, 223)
    listed.rows = [make(number) for number in range(523, 0, -1)]
    tell(page, kind, **listed.rows[0])
    page.evaluate("scrollTo(0, 0)")
    expect(rows(page, table).first).to_contain_text("523")
    # Whole pages of new rows, and no rows behind the gap.
    pages = "|".join(str(ROW * number) for number in range(50, 500, 50))
    expect(page.get_by_role("table", name=table).locator(".body")).to_have_css(
        "height", re.compile(f"^({pages})px$")
    )


def test_a_page_that_comes_during_a_refresh_stays(page):
    """It goes behind the refreshed rows, not behind the old ones."""
    listed = Listed(page, "/files", [file(number) for number in range(220, 0, -1)])
    go(page, "/files")
    whole(page, "Files", 100)
    held = []
    listed.answer = lambda route: held.append(route) if "after=" in route.request.url else listed.serve(route)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_until(lambda: held or page.evaluate("0"), "the next page to be asked for")
    listed.rows = [file(221), *listed.rows]
    tell(page, "file", **file(221))
    whole(page, "Files", 101)
    listed.serve(held.pop())
    whole(page, "Files", 201)


def test_a_page_that_fails_can_be_asked_for_again(page):
    """The list says why, stops loading by itself, and keeps its button."""
    listed = Listed(page, "/files", [file(number) for number in range(150, 0, -1)])
    go(page, "/files")
    whole(page, "Files", 100)
    failed = []

    def fail(route):
        failed.append(route.request.url)
        route.fulfill(status=503, json={"error": {"message": "The store is away."}})

    listed.answer = lambda route: fail(route) if "after=" in route.request.url else listed.serve(route)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_role("alert")).to_contain_text("The store is away.")
    page.evaluate("scrollTo(0, 0)")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert len(failed) == 1
    listed.answer = listed.serve
    button(page, "Show more").click()
    whole(page, "Files", 150)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_older_answer_gives_way_to_a_newer_event(page):
    """A list in flight does not undo an event that came meanwhile."""
    listed = Listed(page, "/batches", [batch(1)])
    go(page, "/batches")
    row = rows(page, "Batches")
    expect(row).to_contain_text("in progress")
    held = []
    listed.answer = lambda route: held.append((route, listed.page(route)))
    tell(page, "batch", **batch(2))
    wait_until(lambda: held or page.evaluate("0"), "the list to be asked for")
    listed.answer = listed.serve
    listed.rows = [batch(1, "completed")]
    tell(page, "batch", **batch(1, "completed"))
    expect(row).to_contain_text("completed")
    [(route, answer)] = held
    with page.expect_request("**/v1/batches?*"):
        route.fulfill(json=answer)
    expect(row).to_contain_text("completed")


def test_a_panel_leaves_the_page_where_it_is(page):
    """Opening and closing keep the scroll position, and the focus returns to its row."""
    hooks = [
        {
            "id": f"we_{number}",
            "name": f"hook {number}",
            "url": "https://hooks.invalid/x",
            "event_types": ["batch.failed"],
            "created_at": 1,
            "signing_secret_hint": "whsec_…",
            "tidemill": {"enabled": True, "failing_since": None, "disabled_at": None},
        }
        for number in range(80)
    ]
    Listed(page, "/webhook_endpoints", hooks)
    Listed(page, "/webhook_endpoints/we_60/deliveries", [])
    go(page, "/webhooks")
    whole(page, "Webhook endpoints", 80)
    page.evaluate("scrollTo(0, 36 * 55)")
    link = page.get_by_role("link", name="hook 60")
    link.focus()
    before = page.evaluate("scrollY")
    assert before > 0
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="hook 60")).to_contain_text("No event was sent yet.")
    assert page.evaluate("scrollY") == before
    page.keyboard.press("Escape")
    expect(link).to_be_focused()
    assert page.evaluate("scrollY") == before


def test_a_table_in_a_panel_shows_the_rows_in_sight(page, client):
    """Also after the panel, and not the page, was scrolled."""
    found = client.get("/admin/servers", cast_to=dict)["data"][0]
    part = {"server": found["id"], "in_flight": 1, "limit": 8, "lines_per_second": 1.0, "refused": 0}
    times = {"p50": None, "p99": None}
    load = {
        **part,
        "lines_waiting": 0,
        "queued": None,
        "tokens_per_second": 0,
        "duration_seconds": times,
        "first_byte_seconds": times,
        "breaker": "closed",
        "cause": None,
        "processes": [part | {"process": f"process {number}"} for number in range(200)],
    }
    page.route("**/v1/admin/servers/*", lambda route: route.fulfill(json=found | {"load": load}))
    go(page, f"/servers?name={found['id']}")
    whole(page, "Processes that use it", 200)
    page.locator(".panel .content").evaluate("content => content.scrollTo(0, content.scrollHeight)")
    expect(rows(page, "Processes that use it").filter(has_text="process 199")).to_be_visible()


def test_selected_batches_are_downloaded_and_rerun(page):
    """Downloads get all parts of an output; a refused batch stops no other; the confirmation names the number."""
    parts = {"output_file_ids": ["file-1", "file-2"]}
    made = [
        batch(2, "completed", output_file_id="file-1", tidemill=parts),
        batch(1, "completed", output_file_id="file-3"),
    ]
    Listed(page, "/batches", made)
    refused = made[0]["id"]
    page.route(
        "**/rerun",
        lambda route: route.fulfill(
            status=409 if refused in route.request.url else 200,
            json={"error": {"message": "There are no such lines."}, "id": "batch_1"},
        ),
    )
    go(page, "/batches")
    page.get_by_label("Select all rows").check()
    expect(button(page, "Download 3 outputs")).to_be_visible()
    button(page, "Rerun what failed in 2 batches").click()
    button(page, "Rerun 2 batches").click()
    told = page.get_by_role("alert")
    expect(told).to_contain_text("Started 1 rerun of what did not succeed; 1 batch was refused: There are no such")
    expect(page.get_by_role("group", name="Selected batches")).to_contain_text("1 batch selected")
    go(page, "/batches?status=completed")
    expect(rows(page, "Batches")).to_have_count(2)
    expect(page.get_by_role("group", name="Selected batches")).to_have_count(0)


def test_a_metadata_filter_needs_a_value(page):
    """The field says so; an address with half a filter shows no batches, as if all of them matched."""
    Listed(page, "/batches", [batch(1)])
    go(page, "/batches?status=in_progress&order=asc")
    page.get_by_label("Add a filter").click()
    page.get_by_label("Metadata", exact=True).fill("team")
    page.get_by_label("Metadata", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_have_text("It needs a name, = and a value.")
    assert "metadata" not in page.url
    page.get_by_label("Metadata", exact=True).fill("team=docs")
    page.get_by_label("Metadata", exact=True).press("Enter")
    expect(page.get_by_role("button", name="Remove the filter Metadata team=docs")).to_be_visible()
    button(page, "Clear").click()
    expect(page.get_by_role("button", name=re.compile("Remove the filter"))).to_have_count(0)
    assert page.url.endswith("/batches?order=asc")
    go(page, "/batches?metadata=team")
    expect(page.get_by_role("main").get_by_text("The filter Metadata is not complete.")).to_be_visible()
    expect(rows(page, "Batches")).to_have_count(0)


def test_all_loaded_rows_are_printed(page):
    """Also those out of sight, which otherwise do not exist."""
    Listed(page, "/batches", [batch(number) for number in range(100, 0, -1)])
    go(page, "/batches")
    whole(page, "Batches", 100)
    count = "document.querySelectorAll('[data-row]').length"
    assert page.evaluate(count) < 100
    assert (
        page.evaluate(f"async () => {{ dispatchEvent(new Event('beforeprint')); await 0; return {count}; }}")
        == 100
    )


def shown(page, found):
    """Open the page of a made-up batch."""
    page.route(f"**/v1/batches/{found['id']}", lambda route: route.fulfill(json=found))
    go(page, f"/batches/{found['id']}")


def test_the_focus_follows_the_pages(page):
    """A new page focuses its heading, and Back the row that led to it; a name cannot turn the text after it."""
    listed = Listed(page, "/batches", [batch(number) for number in range(120, 0, -1)])
    opened = listed.rows[40] = batch(80, tidemill={"name": "safe \u202egpj.exe"})
    page.route(f"**/v1/batches/{opened['id']}", lambda route: route.fulfill(json=opened))
    go(page, "/batches")
    whole(page, "Batches", 100)
    page.evaluate("scrollTo(0, 36 * 30)")
    link = page.get_by_role("link", name="safe \ufffdgpj.exe")
    link.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_title("25 % · safe \ufffdgpj.exe · Tidemill")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.go_back()
    expect(link).to_be_focused()


def test_results_are_named_after_their_batch(page):
    """With what they are; the file's name has only ids."""
    Listed(page, "/batches", [batch(5)])
    named = [(2, batch(5)["id"], "output"), (1, batch(6)["id"], "errors")]
    results = [
        file(number) | {"filename": f"{made}_{kind}.jsonl", "purpose": "batch_output"}
        for number, made, kind in named
    ]
    Listed(page, "/files", results)
    go(page, "/files")
    expect(rows(page, "Files").first).to_contain_text(re.compile("batch 5.*Output"))
    expect(rows(page, "Files").last).to_contain_text(re.compile(f"Batch …{batch(6)['id'][-8:]}.*Errors"))


def test_lines_that_did_not_run(page):
    """An expired batch counts them; a rejected one names the lines of equal faults together, by line."""
    shown(
        page,
        batch(1, "expired", expired_at=CREATED + 61, request_counts={"total": 40, "completed": 0, "failed": 0}),
    )
    expect(page.get_by_role("region", name="Unfinished")).to_contain_text("40100 % of all lines")
    faults = [
        {"code": "invalid_json_line", "line": line, "param": None, "message": f"It has {line}."}
        for line in (2, *range(7, 67), 70)
    ]
    none = {"total": 0, "completed": 0, "failed": 0}
    shown(page, batch(2, "failed", failed_at=CREATED + 62, errors={"data": faults[::-1]}, request_counts=none))
    said = page.get_by_role("alert")
    expect(said).to_contain_text("Line 2: It has 2.")
    expect(said).to_contain_text("Lines 9\N{EN DASH}66, 70: the same fault")
