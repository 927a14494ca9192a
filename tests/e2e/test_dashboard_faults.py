"""The dashboard when the service refuses or does not answer: it says why, and the user loses nothing."""

import pytest
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import PHONE, button, chats, go, rows, signed_in, started, state
from support.made_up import held, with_events
from support.waiting import wait_until

pytestmark = pytest.mark.e2e

REFUSED = "Made up by a test."
SECRET = "sk-made-up-by-a-test"


@pytest.fixture
def ended(client, backend, tmp_path):
    """A batch of two lines, one of which failed."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse"))
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "end of the batch")
    return batch.id


def refuse(page, *patterns, status):
    """Answer these requests with a fault."""

    def answer(route):
        if route.request.url.endswith("/limits") and "**/v1/**" in patterns:
            route.continue_()  # of the sign-in
        else:
            route.fulfill(status=status, json={"error": {"message": REFUSED}})

    for pattern in patterns:
        page.route(pattern, answer)


def says_why(page, path):
    """Open a page that shows nothing but the fault."""
    go(page, path)
    said = page.get_by_role("alert").or_(page.locator(".empty")).filter(has_text=REFUSED)
    expect(said.first).to_be_visible()
    expect(page.get_by_role("status", name="Loading")).to_have_count(0)


PAGES = (
    *(
        "/",
        "/batches",
        "/batches/batch_1",
        "/compare",
        "/compare?left=batch_1&right=batch_2",
        "/files",
        "/servers",
    ),
    *("/queues", "/usage", "/projects", "/webhooks", "/keys", "/audit", "/dead-letters", "/settings"),
)
PARTS = (
    ("tab=failures", "**/errors"),
    ("tab=lines", "**/results?*"),
    ("tab=lines&line=1", "**/content"),
    ("tab=timeline", "**/timeline"),
    ("tab=request", "**/content"),
)
"""Parts of a batch's page, and the requests that each one needs."""


@pytest.mark.parametrize("status", [500, 403])
def test_a_page_says_why_it_shows_nothing(page, ended, status):
    """And nothing looks as if it were still loading."""
    refuse(page, "**/v1/**", status=status)
    page.reload()
    for path in PAGES:
        says_why(page, path)
    page.unroute_all()
    for query, pattern in PARTS:
        refuse(page, pattern, status=status)
        says_why(page, f"/batches/{ended}?{query}")
        page.unroute_all()


def test_panels_say_why_they_show_nothing(page, client, ended):
    """The deliveries of a webhook endpoint, the load of a server, and the lines of a comparison."""
    hook = client.webhooks.create(name="of faults", url="https://hooks.invalid/x", event_types=["batch.failed"])
    server = client.get("/admin/servers", cast_to=dict)["data"][0]["id"]
    for path, pattern in (
        (f"/webhooks?endpoint={hook.id}", "**/deliveries?*"),
        (f"/servers?name={server}", "**/v1/admin/servers/*"),
        (f"/batches/{ended}?tab=lines&line=2", "**/results?after=*"),
    ):
        refuse(page, pattern, "**/results?limit=*", status=403)
        go(page, path)
        page.reload()
        expect(page.get_by_role("dialog").get_by_role("alert").first).to_have_text(REFUSED)
        expect(page.get_by_role("status", name="Loading")).to_have_count(0)
        page.unroute_all()
    client.webhooks.delete(hook.id)


def test_a_chart_that_does_not_load_says_so(page, ended):
    """The next chart loads the library again."""
    page.route("**/throughput", lambda route: route.fulfill(json={"interval_seconds": 1, "data": POINTS}))
    page.route("**/uPlot.iife.min.js", lambda route: route.abort())
    go(page, f"/batches/{ended}")
    page.reload()
    chart = page.get_by_role("region", name="Throughput")
    expect(chart.get_by_role("alert")).to_have_text("The chart did not load.")
    page.unroute("**/uPlot.iife.min.js")
    go(page, "/queues")
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()
    go(page, f"/batches/{ended}")
    expect(chart.locator("canvas")).to_be_visible()


POINTS = [{"at": 1_800_000_000 + at, "completed": 1, "failed": 0, "retried": 0, "limit": 2} for at in range(9)]


def test_a_switch_of_the_project_that_fails_changes_nothing(browser, root, client, ended):
    """The page and the choice stay; a switch that has worked counts, also if the limits do not come."""
    client.post("/admin/keys", body={"name": "switch", "project": "elsewhere"}, cast_to=object)
    with signed_in(browser, root) as page:
        go(page, f"/batches/{ended}")
        state(page, "some lines failed")
        project = page.get_by_role("combobox", name="Project")
        before = project.input_value()
        refuse(page, "**/dashboard/session/project", status=503)
        project.select_option("elsewhere")
        expect(page.get_by_role("alert")).to_contain_text(REFUSED)
        expect(project).to_have_value(before)
        state(page, "some lines failed")
        page.unroute_all()
        refuse(page, "**/v1/limits", status=503)
        project.select_option("elsewhere")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        expect(project).to_have_value("elsewhere")
        page.unroute_all()
        go(page, "/batches")
        expect(page.get_by_role("main").get_by_text("There is no batch yet.")).to_be_visible()


def test_a_sign_out_that_fails_keeps_the_page(browser, root):
    """The user sees that the session goes on."""
    with signed_in(browser, root) as page:
        page.route("**/dashboard/session", lambda route: route.abort())
        page.get_by_label("Account").click()
        button(page, "Sign out").click()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.unroute_all()
        page.get_by_label("Account").click()
        button(page, "Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()


def drag_out(page, source):
    """Press the mouse on an element, and release it beside the dialog."""
    box = source.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(5, 300)
    page.mouse.up()


def test_a_secret_stays_until_it_is_copied(page):
    """Neither a drag nor a click beside it nor Escape closes it, and without a clipboard it can be copied, too."""
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.reload()
    page.route("**/v1/admin/keys", lambda route: route.fulfill(json={"id": "key_1", "secret": SECRET}))
    go(page, "/keys")
    dialog = page.get_by_role("dialog", name="New key")
    button(page, "New key").click()
    page.get_by_label("Name", exact=True).fill("of a test")
    drag_out(page, page.get_by_label("Name", exact=True))
    expect(dialog).to_be_visible()
    button(page, "Create a key").click()
    secret = page.get_by_label("The key")
    expect(secret).to_have_value(SECRET)
    drag_out(page, secret)
    page.mouse.click(5, 300)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(secret).to_be_visible()
    page.evaluate("addEventListener('copy', () => { globalThis.copied = getSelection().toString(); })")
    button(page, "Copy").click()
    assert page.evaluate("copied") == SECRET
    button(page, "Done").click()
    expect(dialog).to_have_count(0)


def test_a_dialog_closes_at_a_click_beside_it(page):
    """Unless a request is in progress, whose result the user would miss."""
    go(page, "/keys")
    dialog = page.get_by_role("dialog", name="New key")
    button(page, "New key").click()
    # The mouse clicks at a place, and so does not wait for the dialog as the locators do.
    expect(dialog).to_be_visible()
    page.mouse.click(5, 300)
    expect(dialog).to_have_count(0)
    asked = held(page, "**/v1/admin/keys")
    button(page, "New key").click()
    page.get_by_label("Name", exact=True).fill("of a test")
    button(page, "Create a key").click()
    expect(button(page, "Create a key")).to_have_attribute("aria-busy", "true")
    page.mouse.click(5, 300)
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    wait_until(lambda: asked or page.evaluate("0"), "the request")
    asked[0].fulfill(json={"id": "key_1", "secret": SECRET})
    button(page, "Done").click()
    expect(dialog).to_have_count(0)


FORMATS = """(([end, at, start]) => Promise.all(
  ["core/format", "pages/shown", "pages/series", "pages/batch/answer", "pages/batch/lines", "pages/servers/load"]
    .map((name) => import(new URL(`./${name}.js`, document.baseURI))))
  .then(([format, shown, series, answer, lines, servers]) => ({
    codes: [
      [400, "<html>"], [400, { error: { type: "bad", code: 7 } }], [429, { error: { code: "full", type: "x" } }],
      [400, { message: "long", type: "BadRequestError", code: 400 }], [422, { detail: "no" }],
    ].map(([status_code, body]) =>
      lines.codeOf({ status: "failed", result: { response: { status_code, body } } })),
    silent: ["closed", "open"].map((breaker) => servers.stateOf({ object: "server", settings: {}, used_by: ["m"],
      load: { breaker, cause: { reason: "server_silent" } } }).tone),
    rates: [0, 0.02, 0.005, 0.5, 20].map(format.rate),
    costs: ["0.0000001", "0.12345", "0.5", "0"].map(format.cost),
    durations: [172803, 100000, 65, 0].map(format.duration),
    slack: shown.slackOf({ status: "in_progress", expires_at: Date.now() / 1000 + 45, tidemill: {} }).text,
    done: series.seriesOf({ interval_seconds: 60, end,
      data: [{ at: start, completed: 1 }, { at, completed: 60 }] }).rates,
    fault: answer.faultOf({ error: { message: { detail: "no" } } }),
    status: answer.preview({ response: { status_code: 500, body: { error: { message: 7 } } } }),
    words: [{ error: "plain" }, { message: "flat" }, { detail: "text" }, { a: 1 },
      { detail: [{ msg: "one" }, { msg: "two" }] }]
      .map((body) => answer.faultOf({ response: { status_code: 400, body } })),
  })))"""


def test_numbers_and_faults_are_readable(page):
    """Tiny costs, long and short times, charts of long batches, and faults that are no text."""
    now = int(page.evaluate("Date.now() / 1000"))
    found = page.evaluate(FORMATS, [now + 20, now - 100, now - 100 - 1000 * 60])
    assert found.pop("done")[-1] == 1
    assert found == {
        "costs": ["0.0000001", "0.123", "0.5", "0"],
        "durations": ["2 d", "1 d 3 h", "1 min 5 s", "0 s"],
        "silent": ["part", "failed"],
        "rates": ["0.0 lines/s", "1.2 lines/min", "0.30 lines/min", "0.5 lines/s", "20 lines/s"],
        "codes": ["http_400", "bad", "full", "BadRequestError", "http_422"],
        "slack": "in 45 s",
        "fault": '{"detail":"no"}',
        "status": "7",
        "words": ["plain", "flat", "text", '{"a":1}', "one; two"],
    }


def test_the_chart_follows_the_theme_of_the_system(page, ended):
    """Unless the user has chosen a theme."""
    page.route("**/throughput", lambda route: route.fulfill(json={"interval_seconds": 1, "data": POINTS}))
    page.emulate_media(color_scheme="light")
    go(page, f"/batches/{ended}")
    canvas = page.get_by_role("region", name="Throughput").locator("canvas")
    expect(canvas).to_be_visible()
    canvas.evaluate("canvas => { globalThis.before = canvas; }")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => !before.isConnected")
    expect(canvas).to_be_visible()


def test_a_list_that_is_cut_says_so(page):
    """The page names the command that lists everything."""
    usage = {
        "model": "chat",
        "batches": 1,
        "lines": 1,
        "input_tokens": 1,
        "output_tokens": 1,
        "cost": {"total": "0"},
    }
    page.route("**/v1/usage?*", lambda route: route.fulfill(json={"data": [usage], "has_more": True}))
    go(page, "/usage")
    expect(rows(page, "Usage")).to_have_count(1)
    expect(page.get_by_role("status").filter(has_text="tidemill usage --csv")).to_be_visible()
    page.route("**/v1/admin/dead_letters?*", lambda route: route.fulfill(json={"data": [], "has_more": True}))
    go(page, "/dead-letters")
    expect(page.get_by_role("status").filter(has_text="tidemill dead list")).to_be_visible()


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ({"min": "0", "max": "0", "is_free": True}, "none: no price is set"),
        ({"min": "0", "max": None, "is_free": False}, "known at the end"),
        ({"min": "0", "max": "0", "is_free": False}, "0"),
        ({"min": "0.5", "max": None, "is_free": False}, "at least 0.5"),
        ({"min": "0.5", "max": "2", "is_free": False}, "0.5 to 2"),
    ],
)
def test_a_replay_names_its_cost(page, cost, said):
    """Only a model without a price costs nothing."""
    model = {"id": "made-up", "tidemill": {"endpoints": ["/v1/embeddings"]}}
    plan = {
        "lines": 1, "batches": 1, "endpoint": "/v1/embeddings", "input_tokens": 1, "output_tokens_max": None,
        "models": [{"model": "made-up"}], "cost": cost, "is_too_large": False, "lost_lines": 0, "skipped_lines": 0,
    }  # fmt: skip
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [model]}))
    page.route("**/v1/replays", lambda route: route.fulfill(json=plan))
    go(page, "/replay?of=log&model=made-up")
    button(page, "Show what would run").click()
    facts = page.get_by_role("region", name="What would run")
    expect(facts.locator("dt", has_text="Cost").locator("xpath=following-sibling::dd[1]")).to_have_text(said)


def test_an_empty_page_fits_a_phone(page):
    """Its command takes several lines there."""
    page.set_viewport_size(PHONE)
    page.route("**/v1/webhook_endpoints*", lambda route: route.fulfill(json={"data": [], "has_more": False}))
    go(page, "/webhooks")
    expect(page.locator(".empty code")).to_contain_text("tidemill webhooks create")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    code = page.locator(".empty code")
    assert code.evaluate("code => code.scrollWidth <= code.clientWidth")


def test_settings_are_readable(page):
    """Backticks of their texts mark code."""
    go(page, "/settings?search=webhook_allow")
    meaning = rows(page, "Settings").first
    expect(meaning.locator("code").filter(has_text="10.1.0.0/16")).to_be_visible()
    expect(meaning).not_to_contain_text("`")


def test_a_service_that_hangs_is_told(page):
    """A request without an answer ends, and a stream that breaks has the page load again at once."""
    page.add_init_script("""
      const limit = AbortSignal.timeout;
      AbortSignal.timeout = (ms) => limit.call(AbortSignal, ms / 50);
    """)
    go(page, "/queues")
    with_events(page)
    waiting = held(page, "**/v1/queues*")
    go(page, "/batches")
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    go(page, "/queues")
    wait_until(lambda: waiting or page.evaluate("0"), "the request")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    go(page, "/batches")
    page.wait_for_function("() => globalThis.events?.readyState === 1")
    page.evaluate("events.onopen()")
    refuse(page, "**/v1/batches?*", status=503)
    page.evaluate("events.onerror()")
    expect(page.get_by_role("alert")).to_contain_text(REFUSED)


def test_a_page_whose_script_did_not_load_loads_again(page):
    """By a button, which reloads the dashboard."""
    page.route("**/pages/queues.js", lambda route: route.abort())
    page.reload()
    go(page, "/queues")
    expect(page.get_by_role("heading", name="The page did not load")).to_be_visible()
    page.unroute_all()
    button(page, "Reload").click()
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()


def test_a_batch_of_another_project_is_found(browser, root, client, ended):
    """The page says which project it is in, and offers the others."""
    client.post("/admin/keys", body={"name": "other", "project": "elsewhere"}, cast_to=object)
    with signed_in(browser, root) as page:
        go(page, f"/batches/{ended}")
        state(page, "some lines failed")
        project = page.get_by_role("combobox", name="Project")
        before = project.input_value()
        project.select_option("elsewhere")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        go(page, f"/batches/{ended}")
        expect(page.get_by_role("main")).to_contain_text("You are in the project elsewhere.")
        button(page, f"Look in {before}").click()
        state(page, "some lines failed")
