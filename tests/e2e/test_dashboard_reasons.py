"""The dashboard tells why batches, models and servers wait, by faked answers of the service."""

import pytest
from playwright.sync_api import expect
from support.dashboard import axe_faults, button, go, rows, state
from support.made_up import batch

pytestmark = pytest.mark.e2e

SINCE = 1_800_000_000


def wait(reason, message, lines=3, server=None):
    """A reason of a batch."""
    return {"reason": reason, "server": server, "status": None, "lines": lines, "message": message, "since": SINCE}


def served(page, made):
    """Serve this batch, and no series of it."""
    page.route(f"**/v1/batches/{made['id']}", lambda route: route.fulfill(json=made))
    page.route("**/v1/batches/*/throughput", lambda route: route.fulfill(json={"interval_seconds": 1, "data": []}))


@pytest.mark.parametrize(
    ("reason", "message", "word"),
    [
        ("batches_at_work", "1 unfinished batch is before this one.", "in progress"),
        ("open", "The batch is open.", "in progress"),
        ("drained", "gpu-1 gets no calls: it is set to drain.", "held by settings"),
        ("server_fails", "Calls to gpu-1 fail.", "stalled"),
    ],
)
def test_a_waiting_batch_says_why(page, reason, message, word):
    """A usual reason is no warning; without an expected end the list names it, too."""
    waiting = [wait(reason, message, server="gpu-1@10.0.0.1")]
    made = batch(1, tidemill={"waiting": waiting, "progress": None, "at_risk": None})
    served(page, made)
    page.route("**/v1/batches?*", lambda route: route.fulfill(json={"data": [made], "has_more": False}))
    go(page, f"/batches/{made['id']}")
    state(page, word)
    banner = page.locator(".banner").filter(has_text=message)
    expect(banner).to_have_class(f"banner {'warn' if word == 'stalled' else 'info'}")
    expect(banner.get_by_role("link", name="Show gpu-1")).to_have_attribute("href", "#/servers?name=gpu-1")
    go(page, "/batches")
    expect(page.get_by_text(f"waits: {reason.replace('_', ' ')}")).to_be_visible()


def test_a_model_says_why_it_waits(page):
    """In its row and in its panel."""
    cause = {"reason": "server_refuses", "status": 503, "message": "gpu-1 answers 503.", "since": SINCE}
    load = {"in_flight": 0, "lines_waiting": 40, "lines_per_second": 0.0, "cause": cause}
    page.route("**/v1/admin/models?*", lambda route: route.fulfill(json={"data": [entry("model", load)]}))
    go(page, "/servers?kind=model&name=m")
    expect(rows(page, "Models").filter(has_text="refuses calls")).to_have_count(1)
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("gpu-1 answers 503.")


def entry(kind, load, name="m"):
    """A server or a model as the API lists it, with a load."""
    return {
        "object": kind, "id": name, "settings": {}, "author": "key_1", "changed_at": SINCE, "revision": "1",
        "removed": False, "used_by": ["other"], "fault": None, "warnings": [], "load": load,
    }  # fmt: skip


def test_one_row_for_each_cause(page):
    """The worst first; all of them on demand; and records that no stage could process."""
    down = "gpu-1 answers 503."
    work = [batch(n, tidemill={"waiting": [wait("server_refuses", down, 20, "gpu-1@10.0.0.1")]}) for n in (1, 2)]
    work += [batch(n, tidemill={"waiting": [wait("drained", "It drains.", 1, f"s{n}")]}) for n in range(3, 14)]
    page.route("**/v1/batches?*", lambda route: route.fulfill(json=listed(work, route, "in_progress")))
    letters = [{"id": "t/0/1", "requeued_at": None}, {"id": "t/0/2", "requeued_at": SINCE}]
    page.route(
        "**/v1/admin/dead_letters?*", lambda route: route.fulfill(json={"data": letters, "has_more": False})
    )
    cause = {"reason": "server_refuses", "status": 503, "message": down, "since": SINCE}
    load = {
        "in_flight": 0, "limit": 1, "lines_waiting": 40, "refused": 0, "queued": None, "lines_per_second": 0,
        "tokens_per_second": 0, "duration_seconds": {"p50": None, "p99": None}, "breaker": "open", "cause": cause,
    }  # fmt: skip
    page.route(
        "**/v1/admin/servers?*", lambda route: route.fulfill(json={"data": [entry("server", load, "gpu-1")]})
    )
    go(page, "/batches")
    go(page, "/")
    troubles = page.get_by_role("region", name="Needs attention").get_by_role("listitem")
    expect(troubles).to_have_count(12)
    expect(troubles.first).to_contain_text("gpu-1 answers 503.")
    expect(troubles.first).to_contain_text("40 lines of 2 batches wait: batch 1, batch 2")
    expect(troubles.nth(1)).to_contain_text("No stage could process 1 of")
    button(page, "Show all 13").click()
    expect(troubles).to_have_count(13)
    expect(page.get_by_role("region", name="Late or stalled")).to_contain_text("2")


def test_rows_of_several_batches_lead_to_their_list(page):
    """Of those that wait for one cause, that will be late, and that ended with failures."""
    paused = wait("paused", "chat is paused.")
    late = {"progress": {"slack_seconds": -3_600, "percent": 1, "lines_per_second": 1}}
    work = [batch(n, tidemill={"waiting": [paused]}) for n in range(1, 6)]
    work += [batch(n, tidemill=late) for n in range(11, 16)]
    failed = [batch(n, "failed", failed_at=SINCE + n) for n in range(21, 26)]

    def answer(route):
        found = listed(work, route, "in_progress")
        route.fulfill(json=listed(failed, route, "failed") if "status=failed" in route.request.url else found)

    page.route("**/v1/batches?*", answer)
    page.route("**/v1/admin/*?*", lambda route: route.fulfill(json={"data": [], "has_more": False}))
    go(page, "/batches")
    go(page, "/")
    troubles = page.get_by_role("region", name="Needs attention").get_by_role("listitem")
    expect(troubles).to_have_count(3)
    for name, trouble, words in (
        ("Late", "late", "5 batches will end after their deadline: batch 11, batch 12, batch 13 and 2 more"),
        ("Failed", "failures", "5 batches of the last day failed: batch 21, batch 22, batch 23 and 2 more"),
        ("paused", "stalled", "15 lines of 5 batches wait: batch 1, batch 2, batch 3 and 2 more"),
    ):
        row = troubles.filter(has=page.get_by_role("link", name=name, exact=True))
        expect(row).to_contain_text(words)
        for link in (name, "2 more"):
            shown = row.get_by_role("link", name=link, exact=True)
            expect(shown).to_have_attribute("href", f"#/batches?trouble={trouble}")
    assert not axe_faults(page)


def listed(made, route, status):
    """The batches of a status, as the answer to a request for batches."""
    return {"data": made if f"status={status}" in route.request.url else [], "has_more": False, "last_id": None}
