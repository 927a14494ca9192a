"""What a command prints about a batch while it runs and when it ends."""

import io
import sys

import pytest
from support.service import Service

from tidemill.client.batches import watch
from tidemill.client.errors import Exit
from tidemill.client.http.client import Client
from tidemill.client.runs.paths import Sink
from tidemill.terminal import Console


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"status": "completed", "request_counts": {"total": 1, "completed": 1}}, Exit.OK),
        ({"status": "completed", "request_counts": {"total": 1, "failed": 1}}, Exit.SOME_FAILED),
        ({"status": "expired"}, Exit.EXPIRED),
        ({"status": "cancelled"}, Exit.CANCELLED),
        ({"status": "failed", "errors": {"data": []}}, Exit.FAILED),
    ],
)
async def test_each_final_status_has_an_exit_code(
    service: Service, client: Client, console: Console, state: dict[str, object], code: Exit
) -> None:
    """`watch` waits through the statuses before it."""
    service.states = [{"status": "validating"}, {"status": "in_progress", "request_counts": {"total": 9}}, state]
    assert await watch(console, client, "batch_1", Sink(), None) is code
    assert service.looks == 3


async def test_faulty_lines_are_listed(service: Service, client: Client, console: Console) -> None:
    """Each with its line, field and message; control characters are escaped."""
    fault = {"code": "invalid_type", "message": "bad \x1b[31m[red]it[/red]", "param": "body.model", "line": 7}
    service.states = [{"status": "failed", "errors": {"object": "list", "data": [fault]}}]
    assert await watch(console, client, "batch_1", Sink(), None) is Exit.FAILED
    assert "line 7 (body.model): bad \\x1b[31m[red]it[/red] [invalid_type]" in console.export_text()


@pytest.mark.parametrize(
    ("state", "words", "colour"),
    [
        ({"status": "completed", "request_counts": {"total": 200, "completed": 200}}, "200 of 200 succeeded", 32),
        (
            {"status": "completed", "request_counts": {"total": 200, "completed": 1, "failed": 199}},
            "1 of 200 succeeded, 199 failed",
            33,
        ),
        (
            {"status": "completed", "request_counts": {"total": 200, "failed": 200}},
            "0 of 200 succeeded, 200 failed",
            31,
        ),
        (
            {
                "status": "expired",
                "request_counts": {"total": 9, "completed": 4, "failed": 1},
                "expired_at": 86_401,
            },
            "expired after 24:00:00 h: 4 of 9 succeeded, 1 failed, 4 did not run",
            33,
        ),
        ({"status": "failed", "failed_at": 3}, "failed after 2.0 s: the input was rejected, no line was run", 31),
        (
            {"status": "failed", "failed_at": 1},
            "failed within a second: the input was rejected, no line was run",
            31,
        ),
    ],
)
async def test_the_summary_has_a_headline_and_a_colour(
    service: Service, client: Client, *, state: dict[str, object], words: str, colour: int
) -> None:
    """Green if all lines succeeded, red if none did. The duration is that of the batch."""
    service.states = [state]
    file = io.StringIO()
    terminal = Console(
        file=file, width=80, force_terminal=True, color_system="standard", highlight=False, soft_wrap=True
    )
    await watch(terminal, client, "batch_1", Sink())
    (headline,) = [line for line in file.getvalue().splitlines() if words in line]
    assert f"\x1b[{colour}m" in headline


async def test_the_summary_groups_failed_lines_and_offers_a_rerun(
    service: Service, client: Client, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By code, the most frequent first, with a message of the server."""
    # The command is named as it was called; coverage runs as a module.
    monkeypatch.setattr(sys, "argv", ["tidemill"])
    counts = {"total": 300, "completed": 30, "failed": 270}
    groups = [{"code": f"c{n}", "status_code": None, "count": n, "samples": []} for n in range(1, 24)]
    sample = {"index": 0, "custom_id": "a", "message": "slow \x1b[31mdown"}
    groups.append({"code": "rate_limit", "status_code": 429, "count": 199, "samples": [sample]})
    service.states = [{"status": "expired", "request_counts": counts, "expired_at": 61}]
    service.report = {"total": 270, "unfinished": 269, "data": groups}
    await watch(console, client, "batch_1", Sink())
    said = console.export_text().splitlines()
    assert said[2] == "  199 x 429 rate_limit: slow \\x1b[31mdown"
    assert said[-2:] == [
        "  and 4 more: --all shows them",
        "  To rerun the 269 unfinished lines: `tidemill rerun batch_1`",
    ]
    await watch(console, client, "batch_1", Sink(), show_all=True)
    assert "1 x c1" in console.export_text()


async def test_a_stall_is_printed_when_it_begins(service: Service, client: Client, console: Console) -> None:
    """A reason of normal operation, such as waiting for other batches, is printed once."""
    usual = {"reason": "queued", "lines": 9, "message": "others go first", "since": 1}
    down = {
        "reason": "server_refuses",
        "lines": 5,
        "server": "http://h/v1",
        "message": "h answers 401",
        "since": 1,
    }
    stalled = {"status": "in_progress", "request_counts": {"total": 9}, "tidemill": {"waiting": [usual, down]}}
    fine = {**stalled, "tidemill": {"waiting": [usual]}}
    none = {**stalled, "tidemill": {}}
    service.states = [stalled, stalled, fine, none, stalled, {"status": "completed"}]
    await watch(console, client, "batch_1", Sink())
    said = console.export_text()
    assert said.count("5 lines wait: h answers 401") == 2
    assert said.count("9 lines wait: others go first") == 1


async def test_equal_faults_are_one_row(service: Service, client: Client, console: Console) -> None:
    """--all lists each line."""
    faults = [{"code": "c", "message": "no body", "param": "body", "line": n} for n in range(1, 1_000)]
    service.states = [
        {"status": "failed", "errors": {"object": "list", "data": [*faults, faults[0] | {"code": "d"}]}}
    ]
    await watch(console, client, "batch_1", Sink())
    assert console.export_text().splitlines()[2:] == [
        "  lines 1, 2, 3 and 996 more (body): no body [c]",
        "  line 1 (body): no body [d]",
    ]
    await watch(console, client, "batch_1", Sink(), show_all=True)
    assert "  line 998 (body): no body [c]" in console.export_text()
