"""The dashboard in a browser: lines run again after a look at the plan, and dead letters are sent again."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
from aiokafka import AIOKafkaProducer
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import axe_faults, button, chats, choose, go, rows, signed_in, started, state, tab_to, whole
from support.made_up import held
from support.stack import Stack
from support.waiting import wait_until

from tidemill.schemas.log import topics

pytestmark = pytest.mark.e2e


@pytest.fixture
def ended(client, backend, tmp_path):
    """A batch of four lines, two of which failed."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse", None, "refuse"), name="To run again")
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "end of the batch")
    return batch


def test_lines_of_a_batch_run_again(page, client, ended):
    """First the plan, which another choice discards; then the run, on the page of its batch."""
    go(page, "/replay")
    button(page, "Show what would run").click()
    expect(page.get_by_role("alert")).to_contain_text("Name a batch")
    page.get_by_label("Batch", exact=True).fill(ended.id)
    expect(page.locator("#batch-help")).to_have_text("To run again")
    button(page, "Show what would run").click()
    run = button(page, "Run 2 lines")
    expect(run).to_be_enabled()
    assert not axe_faults(page)
    page.get_by_label("Lines", exact=True).select_option("all")
    expect(run).to_have_count(0)
    button(page, "Show what would run").click()
    expect(page.get_by_role("region", name="What would run")).to_contain_text("/v1/chat/completions")
    button(page, "Run 4 lines").click()
    state(page, "some lines failed")
    again = client.batches.retrieve(re.search("batch_[0-9a-f]+", page.url)[0])
    assert again.tidemill["rerun_of"] == ended.id
    assert again.request_counts.total == 4


def test_a_plan_of_other_values_is_not_run(page, ended):
    """A late plan does not count if the user has chosen other lines since."""
    plans = held(page, "**/rerun")
    go(page, f"/replay?batch={ended.id}")
    button(page, "Show what would run").click()
    wait_until(lambda: plans or page.evaluate("0"), "the plan to be asked for")
    page.get_by_label("Lines", exact=True).select_option("all")
    with page.expect_response("**/rerun"):
        plans[0].continue_()
    expect(button(page, "Show what would run")).not_to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("region", name="What would run")).to_have_count(0)
    page.get_by_label("Lines", exact=True).select_option("unfinished")
    expect(button(page, "Run 2 lines")).to_be_enabled()


def test_the_next_line_is_the_next_of_the_filter(page, ended):
    """The line says its HTTP status; and its rerun may have another window."""
    go(page, f"/batches/{ended.id}?tab=lines&status=failed&line=2")
    panel = page.get_by_role("dialog")
    expect(panel).to_contain_text("Line 2 of 4 lines")
    expect(panel.get_by_text("HTTP status")).to_be_visible()
    expect(button(page, "Line before")).to_be_disabled()
    button(page, "Next line").click()
    expect(panel).to_contain_text("Line 4 of 4 lines")
    expect(button(page, "Next line")).to_be_disabled()
    page.keyboard.press("Escape")
    button(page, "Rerun 2 failed lines").click()
    # The dialog has asked for the cost without a window before.
    with page.expect_request(lambda asked: '"completion_window":"24h"' in (asked.post_data or "")):
        page.get_by_label("Completion window").select_option("24h")
    expect(button(page, "Rerun 2 lines")).to_be_enabled()


def test_a_long_line_is_looked_at(page, client, tmp_path):
    """The page shows a line that the service accepts; for one that is too long it says so."""
    path = chats(tmp_path / "in.jsonl", None, text=lambda _: "x" * (2 << 20))
    go(page, "/new")
    choose(page, path)
    expect(button(page, "Start 1 line")).to_be_enabled()
    expect(rows(page, "First lines")).to_have_count(1)
    batch = started(client, chats(tmp_path / "in.jsonl", None))
    page.route("**/content", lambda route: route.fulfill(body="x" * (5 << 20)))
    go(page, f"/batches/{batch.id}?tab=lines&line=1")
    expect(page.get_by_role("dialog")).to_contain_text("The line is too long to show here.")


def test_a_search_that_is_not_over_says_so(page, ended):
    """In the lines of a batch, and in a comparison, which looks for the line of the address until it is found."""
    steps = []

    def search(route):
        steps.append(route.request.url)
        if len(steps) > 22 and "custom_id" in route.request.url:
            route.fulfill(json={"object": "list", "data": [made_line(0)], "has_more": False, "next_after": None})
        else:
            route.fulfill(json={"object": "list", "data": [], "has_more": True, "next_after": len(steps) - 1})

    page.route("**/results?*", search)
    go(page, f"/batches/{ended.id}?tab=lines&contains=nowhere")
    expect(page.get_by_role("main").get_by_text("No match in the first 10 lines yet.")).to_be_visible()
    button(page, "Search further").click()
    expect(page.get_by_role("main").get_by_text("No match in the first 20 lines yet.")).to_be_visible()
    steps.clear()
    page.route(
        "**/compare?*", lambda route: route.fulfill(json=nothing_yet(is_over="limit=0" in route.request.url))
    )
    page.route("**/batches/batch_*x", lambda route: route.continue_(url=route.request.url[:-1]))
    go(page, f"/compare?left={ended.id}&right={ended.id}x&show=constructor&line=r0")
    expect(page.get_by_role("dialog", name="r0")).to_contain_text("done")
    expect(page.get_by_role("main").get_by_text("No line is like this so far")).to_be_visible()


def nothing_yet(*, is_over):
    """A page of a comparison in which no line fits."""
    return {"object": "list", "data": [], "counts": {}, "has_more": not is_over, "next_after": "1_1"}


def test_the_lines_of_a_running_batch_are_not_final(page, client, backend, tmp_path):
    """Not even a whole page of them: lines that end next may belong before it."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait"))
    lines = [made_line(index) for index in range(1, 400)]
    page.route("**/results?*", lambda route: route.fulfill(json=made_page(lines, route.request.url)))
    go(page, f"/batches/{batch.id}?tab=lines")
    expect(rows(page, "Lines").first).to_contain_text("r1")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    whole(page, "Lines", 399)
    lines.insert(0, made_line(0))
    whole(page, "Lines", 400)
    page.evaluate("scrollTo(0, 0)")
    expect(rows(page, "Lines").first).to_contain_text("r0")
    client.batches.cancel(batch.id)


def made_line(index):
    """A line that is done, as the API lists it."""
    response = {"status_code": 200, "body": {"text": "done"}}
    return {"index": index, "status": "completed", "result": {"custom_id": f"r{index}", "response": response}}


def made_page(lines, url):
    """The page of these lines that an address asks for."""
    query = parse_qs(urlsplit(url).query)
    rest = [line for line in lines if line["index"] > int(query.get("after", ["-1"])[0])]
    found = rest[: int(query["limit"][0])]
    return {"data": found, "has_more": len(rest) > len(found), "next_after": found[-1]["index"] if found else None}


@pytest.mark.usefixtures("ended")
def test_a_stretch_of_the_log_is_planned(page, client):
    """The plan counts its lines and batches, and starts nothing."""
    before = {batch.id for batch in client.batches.list()}
    go(page, "/replay?of=log")
    page.get_by_label("Requests for").select_option("chat")
    page.get_by_label("Endpoint").select_option("/v1/chat/completions")
    at = page.get_by_label("Until (UTC)").input_value()
    page.get_by_label("From (UTC)").fill(at)
    expect(page.get_by_role("alert")).to_contain_text("later than the start")
    page.get_by_label("From (UTC)").fill("2020-01-01T00:00:00")
    page.get_by_label("Until (UTC)").fill("2039-01-01T00:00:00")
    button(page, "Show what would run").click()
    plan = page.get_by_role("region", name="What would run")
    expect(plan).to_contain_text("Of batches")
    expect(page.get_by_role("button", name=re.compile("^Run [0-9,]+ lines$"))).to_be_visible()
    assert {batch.id for batch in client.batches.list()} == before


def test_a_dead_letter_is_sent_again(page, client, stack):
    """It is marked, and dead again, since it is still unreadable; the audit trail has the actor."""
    produce(stack, b"of a test")
    known = [one["id"] for one in letters(client)]
    go(page, "/dead-letters")
    table = rows(page, "Dead letters")
    newest = table.filter(has_text="not processed").first
    newest.get_by_role("checkbox", name=re.compile("^Select ")).check()
    button(page, "Send 1 record again").click()
    page.get_by_role("dialog").get_by_role("button", name="Send 1 record").click()
    expect(page.get_by_text("1 record was sent.")).to_be_visible()
    expect(table.filter(has_text="requeued")).not_to_have_count(0)
    wait_until(lambda: len(letters(client)) > len(known), "the record to be a dead letter again")
    sent = [one for one in letters(client) if one["requeued_at"]]
    trail = client.get("/admin/audit", options={"params": {"action": "dead_letter.requeue"}}, cast_to=dict)["data"]
    assert sent[0]["id"] in {one["target"] for one in trail}
    table.filter(has_text="requeued").first.get_by_role("link").click()
    expect(button(page, "Send it once more")).to_be_visible()
    assert not axe_faults(page)


def test_a_stranger_runs_a_file_and_mends_what_failed(browser, root, client, backend, tmp_path):
    """With the keyboard alone: run a file, find what failed, run that on another model, and compare the two."""
    backend.rule = lambda body, nth: as_told(body | {"stop": None} if body["model"] == "other" else body, nth)
    client.put("/admin/models/other", body={"settings": {"servers": other_servers(client)}}, cast_to=object)
    path = chats(tmp_path / "in.jsonl", None, "refuse", None, "refuse", None)

    def press(target, key="Enter"):
        tab_to(page, target)
        page.keyboard.press(key)

    with signed_in(browser, root) as page:
        page.on("filechooser", lambda _: None)
        page.keyboard.press("n")
        tab_to(page, page.get_by_label("File with a request"))
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(path)
        expect(button(page, "Start 5 lines")).to_be_enabled()
        press(button(page, "Start 5 lines"))
        state(page, "some lines failed")
        expect(page.get_by_role("region", name="test")).to_contain_text("rerun them on another model")
        press(button(page, "Rerun 2 failed lines"))
        tab_to(page, page.get_by_label("Model"))
        page.keyboard.type("other")
        press(button(page, "Rerun 2 lines"))
        expect(page.locator(".related")).to_be_visible()
        state(page, "completed")
        press(page.get_by_role("link", name="Compare them"))
        expect(page.get_by_role("region", name="Failed on the left only")).to_contain_text("2")
        expect(rows(page, "Lines of both")).to_have_count(2)
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="r1")).to_contain_text("echo: hello")
    client.delete("/admin/models/other", cast_to=object)


def other_servers(client):
    """The servers of the model `chat`."""
    return client.get("/admin/models/chat", cast_to=dict)["settings"]["servers"]


def test_two_running_batches_are_compared_at_their_end(page, client, backend, tmp_path):
    """Before, the page says which one is at work; then it counts lines, and shows the pairs of a filter."""
    backend.rule = as_told
    path = chats(tmp_path / "in.jsonl", *[None] * 3)
    left, right = started(client, path), started(client, chats(tmp_path / "in.jsonl", None, "wait"), name="late")
    go(page, f"/compare?left={left.id}&right={right.id}&show=one_failed")
    expect(page.get_by_role("status").filter(has_text="late is not over")).to_be_visible()
    client.batches.cancel(right.id)
    expect(page.get_by_text("3 lines compared")).to_be_visible()
    expect(rows(page, "Lines of both")).to_have_count(1)
    expect(rows(page, "Lines of both")).to_contain_text("Failed on the right only")
    # The page shows the address's line even if it is not among the rows.
    go(page, f"/compare?left={left.id}&right={right.id}&show=same&line=r2")
    panel = page.get_by_role("dialog", name="r2")
    expect(panel).to_contain_text("It does not have this line.")
    expect(panel).to_contain_text("echo: hello")


def test_a_batch_at_work_says_what_it_costs(page, client, backend, tmp_path):
    """The cost of its finished lines; at the end that of the bill."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", *[None] * 30, "wait"))
    go(page, f"/batches/{batch.id}")
    so_far = page.get_by_role("region", name="Cost so far")
    expect(so_far).to_contain_text(re.compile("[1-9][0-9]* tokens in, [1-9][0-9]* out"))

    def done():
        found = client.batches.retrieve(batch.id)
        return found.request_counts.completed == 30 and found.tidemill["progress"].get("usage") and found

    progress = wait_until(done, "30 lines").tidemill["progress"]
    client.batches.cancel(batch.id)
    state(page, "cancelled")
    ended = client.batches.retrieve(batch.id)
    assert progress["usage"] == ended.usage.model_dump(exclude_unset=True)
    assert progress["cost"] == ended.tidemill["cost"]
    expect(page.get_by_role("region", name="Cost", exact=True)).to_contain_text(
        f"{ended.usage.input_tokens} tokens in"
    )


def test_a_replaced_file_does_not_stay(page, client, tmp_path):
    """Nor does the file of a page that the user leaves; the file of a batch stays."""
    paths = [chats(tmp_path / f"{name}-{tmp_path.name}.jsonl", None) for name in ("old", "new", "left")]

    def names():
        return {file.filename for file in client.files.list()} & {path.name for path in paths}

    go(page, "/new")
    choose(page, paths[0])
    expect(button(page, "Start 1 line")).to_be_enabled()
    choose(page, paths[1])
    wait_until(lambda: names() == {paths[1].name}, "the second file alone")
    button(page, "Start 1 line").click()
    state(page, "completed")
    go(page, "/new")
    choose(page, paths[2])
    expect(button(page, "Start 1 line")).to_be_enabled()
    assert names() == {paths[1].name, paths[2].name}
    go(page, "/batches")
    wait_until(lambda: names() == {paths[1].name}, "the file of the batch alone")


def letters(client) -> list[dict]:
    """The dead letters of outcomes, once there is one."""

    def look():
        found = client.get("/admin/dead_letters", cast_to=dict)["data"]
        return [one for one in found if one["topic"] == topics.OUTCOMES.name]

    return wait_until(look, "a dead letter")


def produce(stack: Stack, name: bytes) -> None:
    """Append an unreadable record, in a thread, since the browser uses this thread's event loop."""

    async def send() -> None:
        producer = AIOKafkaProducer(**stack.clients())
        await producer.start()
        await producer.send_and_wait(topics.OUTCOMES.name, b"unreadable", key=name)
        await producer.stop()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, send()).result()
