"""Queries and cells of `usage`, and the states of keys."""

from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tidemill.client import keys, listing, reports, webhooks
from tidemill.client.errors import UsageError
from tidemill.client.http.client import Client
from tidemill.schemas.resources.access import ApiKey

DAY = 86_400


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_csv_cell_is_never_a_formula(text):
    """A quote makes a spreadsheet show it as text."""
    assert listing.cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "0.5", "Qwen/Qwen3-8B", "a=b", "2026-11-23"])
def test_other_csv_cells_are_unchanged(text):
    """They need no quote."""
    assert listing.cell(text) == text


def test_days_are_utc():
    """From midnight to midnight, in Unix seconds."""
    found = reports.query(since="1970-01-02", until="1970-01-03", by="model,day", project="*")
    assert found == {"start_time": str(DAY), "end_time": str(2 * DAY), "group_by": "model,day", "project": "*"}
    assert reports.query(since=None, until=None, by=None, project=None) == {}


@pytest.mark.parametrize("wrong", [{"since": "yesterday"}, {"until": "2026-13-01"}, {"by": "model,secret"}])
def test_an_invalid_query_is_refused(wrong):
    """Before a request is sent."""
    with pytest.raises(UsageError):
        reports.query(**{"since": None, "until": None, "by": None, "project": None} | wrong)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "active"),
        ({"expires_at": 99}, "expired"),
        ({"expires_at": 101}, "until"),
        ({"revoked_at": 5}, "revoked"),
    ],
)
def test_the_state_of_a_key(fields, word):
    """In one word."""
    key = ApiKey(id="k", name="n", project="p", role="read", hint="h", created_at=1, **fields)
    assert keys.state(key, 100).split()[0] == word


ENTRY = {
    "at": 1, "actor": f"key_{'0' * 32}", "action": "batch.delete", "target": f"batch_{'1' * 32}",
    "address": "127.0.0.1", "detail": {"origin": "api"},
}  # fmt: skip
MODEL = {
    "batches": 1, "lines": 1_234_567, "copies": 0, "input_tokens": 9_000, "cached_tokens": 0, "output_tokens": 7,
    "reasoning_tokens": 0, "images": 0, "audio_seconds": 0.0, "model": "m",
    "cost": {"input": "0.000000", "output": "0.5", "units": "0", "total": "0.5"},
}  # fmt: skip


@asynccontextmanager
async def listed(path, *rows):
    """A client of a service with one list."""

    async def page(request):
        del request
        return web.json_response({"object": "list", "data": rows, "has_more": False})

    service = web.Application()
    service.router.add_get(f"/v1{path}", page)
    async with TestServer(service) as server, Client(str(server.make_url("/v1")), "k") as client:
        yield client


@pytest.mark.parametrize(("projects", "has_column"), [(("p", "p"), False), (("p", "q"), True)])
async def test_ids_of_the_audit_log_can_be_copied(capsys, projects, has_column):
    """In 80 columns too; a project that all entries share is not said."""
    async with listed("/admin/audit", *({**ENTRY, "project": each} for each in projects)) as client:
        await reports.show_audit(client, {}, limit=9, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count(ENTRY["target"]) == shown.count(ENTRY["actor"]) == 2
    assert ("project" in shown) is has_column


@pytest.mark.parametrize("as_csv", [False, True])
async def test_usage_leaves_out_what_is_zero_everywhere(capsys, *, as_csv):
    """From a table; CSV has all columns, and numbers that a program reads."""
    async with listed("/usage", MODEL) as client:
        await reports.show_usage(client, {"group_by": "model"}, as_csv=as_csv, as_json=False)
    header, row = capsys.readouterr().out.splitlines()
    if as_csv:
        assert header.split(",") == ["model", *reports.NUMBERS, *(f"cost_{part}" for part in reports.COSTS)]
        assert "1234567" in row
    else:
        names = ["model", "batches", "lines", "input_tokens", "output_tokens", "cost_output", "cost_total"]
        assert header.split() == names
        assert row.split() == ["m", "1", "1,234,567", "9,000", "7", "0.5", "0.5"]


async def test_the_url_of_a_webhook_can_be_copied(capsys):
    """Where a table has no room for it, the endpoints are fields below each other."""
    url = "https://hooks.example.com/tidemill/production/batches"
    hook = {
        "id": f"we_{'0' * 32}", "name": "production", "url": url, "event_types": ["batch.completed"],
        "tidemill": {"enabled": True, "failing_since": None},
    }  # fmt: skip
    async with listed("/webhook_endpoints", hook) as client:
        await webhooks.show_all(client, as_json=False)
    assert url in capsys.readouterr().out
