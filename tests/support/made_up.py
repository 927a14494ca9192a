"""Fakes answers of the service in the browser: long lists, and events at any time."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route
from support.dashboard import CHAT

CREATED = 1_800_000_000
DAY = 86_400
LETTER = {"stage": "ingest", "reason": "It is not JSON.", "topic": "t", "key": "", "bytes": 9, "requeued_at": None}
"""What all dead letters have."""
EVENTS = """(() => {
  class Events extends EventTarget {
    static OPEN = 1;
    static CLOSED = 2;
    readyState = 1;
    constructor() { super(); globalThis.events = this; }
    close() { this.readyState = 2; }
  }
  globalThis.EventSource = Events;
  const later = globalThis.setTimeout;
  globalThis.setTimeout = (act, ms, ...more) => (ms < 15_000 || !ms ? later(act, ms, ...more) : 0);
})()"""
"""Events come from `tell` alone, and no page asks again by itself: it would do so after half a minute."""


def batch(number: int, status: str = "in_progress", **fields: Any) -> dict[str, Any]:
    """A batch as the API shows it; a higher number is a newer one."""
    ended = {"completed_at": CREATED + number + 60} if status == "completed" else {}
    tidemill = {"name": f"batch {number}", "waiting": [], "output_file_ids": [], "reruns": []}
    return {
        "id": f"batch_{number:032x}",
        "object": "batch",
        "status": status,
        "model": "chat",
        "endpoint": CHAT,
        "completion_window": "24h",
        "created_at": CREATED + number,
        "expires_at": CREATED + number + DAY,
        "request_counts": {"total": 4, "completed": 1, "failed": 0},
        "output_file_id": None,
        "tidemill": tidemill | fields.pop("tidemill", {}),
        **ended,
        **fields,
    }


def file(number: int) -> dict[str, Any]:
    """A file as the API shows it."""
    known = {"object": "file", "filename": f"file {number}", "bytes": 9, "purpose": "batch", "expires_at": None}
    return {"id": f"file-{number:032x}", "created_at": CREATED + number, **known}


def key(number: int) -> dict[str, Any]:
    """A key as the API shows it."""
    known = {"created_at": CREATED, "expires_at": None, "revoked_at": None, "role": "read", "project": "p"}
    return {"id": f"key_{number}", "name": f"key {number}", "hint": f"sk-{number}", **known}


def letters(page: Page, number: int) -> None:
    """Make up dead letters, and their list."""
    made = [{"id": f"t/0/{place}", "at": CREATED + place, **LETTER} for place in range(number)]
    answer = {"object": "list", "data": made, "has_more": False}
    page.route("**/v1/admin/dead_letters?*", lambda route: route.fulfill(json=answer))


class Listed:
    """A fake list of the API: its rows, the newest first, and the queries that it got."""

    def __init__(self, page: Page, path: str, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.asked: list[dict[str, str]] = []
        self.answer: Callable[[Route], None] = self.serve
        page.route(f"**/v1{path}?*", self._answer)

    def _answer(self, route: Route) -> None:
        """Answer with the present `answer`, which the test may replace."""
        self.answer(route)

    def serve(self, route: Route) -> None:
        """Answer with one page of the rows."""
        route.fulfill(json=self.page(route))

    def page(self, route: Route) -> dict[str, Any]:
        """The page that a request asks for."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(route.request.url).query).items()}
        self.asked.append(query)
        fitting = [row for row in self.rows if query.get("status") in {None, row.get("status")}]
        after = [place for place, row in enumerate(fitting, 1) if row["id"] == query.get("after")]
        rest = fitting[after[0] if after else 0 :]
        rows = rest[: int(query["limit"])]
        last = rows[-1]["id"] if rows else None
        return {"object": "list", "data": rows, "last_id": last, "has_more": len(rest) > len(rows)}


def held(page: Page, pattern: str) -> list[Route]:
    """Hold back these requests, and append them to the returned list."""
    found: list[Route] = []

    def keep(route: Route) -> None:
        found.append(route)

    page.route(pattern, keep)
    return found


def with_events(page: Page) -> None:
    """Reload the page with a stream of events that only `tell` feeds."""
    page.add_init_script(EVENTS)
    page.reload()


def tell(page: Page, kind: str, **state: Any) -> None:
    """Send an event to the page."""
    page.wait_for_function("() => globalThis.events?.readyState === 1")
    script = "([kind, data]) => events.dispatchEvent(Object.assign(new Event(kind), {data}))"
    page.evaluate(script, [kind, json.dumps(state)])
