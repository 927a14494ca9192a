"""The audit trail: actions that grant or revoke access, or cancel or delete something, are recorded first."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dependencies import ADMIN, NOW, open_dependencies

from tidemill.api.access import trail
from tidemill.api.access.sessions import HEADER
from tidemill.api.access.trail import REFUSALS_MAX, WAIT_SECONDS_MAX, WINDOW_SECONDS, Refusals
from tidemill.api.app import create_app
from tidemill.api.openapi import describe
from tidemill.configuration.settings import Settings
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import codec, dead_letters, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.ports import LogRecord
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Batch, Status

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'
UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
RECORDED = {
    ("POST", "/v1/admin/keys"): Action.KEY_CREATE,
    ("DELETE", "/v1/admin/keys/{key_id}"): Action.KEY_REVOKE,
    ("POST", "/v1/intake/tokens"): Action.TOKEN_CREATE,
    ("POST", "/v1/batches/{batch_id}/cancel"): Action.BATCH_CANCEL,
    ("DELETE", "/v1/batches/{batch_id}"): Action.BATCH_DELETE,
    ("POST", "/v1/batches/{batch_id}/rerun"): Action.BATCH_RERUN,
    ("POST", "/v1/replays"): Action.REPLAY_CREATE,
    ("DELETE", "/v1/files/{file_id}"): Action.FILE_DELETE,
    ("POST", "/v1/uploads/{upload_id}/cancel"): Action.UPLOAD_CANCEL,
    ("PUT", "/v1/admin/servers/{name}"): Action.CATALOG_SET,
    ("PATCH", "/v1/admin/servers/{name}"): Action.CATALOG_SET,
    ("DELETE", "/v1/admin/servers/{name}"): Action.CATALOG_REMOVE,
    ("PUT", "/v1/admin/models/{name}"): Action.CATALOG_SET,
    ("PATCH", "/v1/admin/models/{name}"): Action.CATALOG_SET,
    ("DELETE", "/v1/admin/models/{name}"): Action.CATALOG_REMOVE,
    ("POST", "/v1/admin/apply"): Action.CATALOG_SET,
    ("POST", "/v1/admin/dead_letters/requeue"): Action.DEAD_LETTER_REQUEUE,
    ("POST", "/v1/webhook_endpoints"): Action.WEBHOOK_CREATE,
    ("POST", "/v1/webhook_endpoints/{endpoint_id}"): Action.WEBHOOK_UPDATE,
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/rotate_secret"): Action.WEBHOOK_ROTATE,
    ("DELETE", "/v1/webhook_endpoints/{endpoint_id}"): Action.WEBHOOK_DELETE,
    ("POST", "/v1/messages/batches/{batch_id}/cancel"): Action.BATCH_CANCEL,
    ("DELETE", "/v1/messages/batches/{batch_id}"): Action.BATCH_DELETE,
    ("POST", "/dashboard/session"): Action.SESSION_CREATE,
    ("POST", "/dashboard/session/project"): Action.SESSION_SWITCH,
    ("DELETE", "/dashboard/session"): Action.SESSION_END,
}
PLAIN = {
    ("POST", "/v1/files"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/batches/{batch_id}/requests"),
    ("POST", "/v1/batches/{batch_id}/seal"),
    ("POST", "/v1/batches/estimate"),
    ("POST", "/v1/async/{endpoint_path}"),
    ("POST", "/v1/messages/batches"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/uploads/{upload_id}/parts"),
    ("POST", "/v1/uploads/{upload_id}/complete"),
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/test"),
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/resend"),
}
"""Routes that only add something: the log has it as it is."""


@pytest.fixture
async def deps(tmp_path):
    async with open_dependencies(
        tmp_path, settings=Settings(models={"m": {"backends": [{"url": "http://h/v1"}]}})
    ) as deps:
        yield deps


@pytest.fixture
async def client(deps):
    async with client_of(deps, "key-of-p") as client:
        yield client


@pytest.fixture
async def operator(deps):
    async with client_of(deps, ADMIN) as client:
        yield client


def client_of(deps, key, address="10.0.0.7"):
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(deps), client=(address, 1)),
        base_url="http://api/v1",
        headers={"authorization": f"Bearer {key}"},
    )


def records(deps, *actions):
    """The audit records of the log, after the view has folded them."""
    found = deps.log.trail
    if found:
        deps.view.fold(topics.AUDIT.name, [("", value, place) for place, value in enumerate(found)])
    decoded = [codec.decode_audit(value) for value in found]
    return [record for record in decoded if not actions or record.action in actions]


async def batch_of(client, deps, status):
    """A batch of the project `p` in a status."""
    file = (await client.post("/files", data={"purpose": "batch"}, files={"file": ("f", LINE)})).json()["id"]
    wish = {"endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": file}
    batch = Batch.model_validate((await client.post("/batches", json=wish)).json())
    shown = batch.model_copy(update={"status": status, f"{status.value}_at": NOW})
    deps.view.put_batch(BatchRecord(project="p", batch=shown))
    return batch.id, file


async def signed_in_and_out(client, deps):
    """The id of a session of the dashboard."""
    page = {"origin": "http://api", HEADER: "1"}
    begun = await client.post("http://api/dashboard/session", headers=page)
    cookie = begun.headers["set-cookie"].partition(";")[0]
    page |= {"cookie": cookie, "authorization": ""}
    await client.post("http://api/dashboard/session/project", headers=page, json={"project": "p"})
    await client.delete("http://api/dashboard/session", headers=page)
    await asyncio.gather(*deps.trail._pending)
    return begun.json()["id"]


async def asked(client, operator, deps):
    """Request each recorded route once; returns the answers and the ids of their objects."""
    done, file = await batch_of(client, deps, Status.COMPLETED)
    again, _ = await batch_of(client, deps, Status.COMPLETED)
    running, _ = await batch_of(client, deps, Status.IN_PROGRESS)
    upload = {"filename": "f", "purpose": "batch", "bytes": 9, "mime_type": "application/jsonl"}
    upload_id = (await client.post("/uploads", json=upload)).json()["id"]
    made = (await operator.post("/admin/keys", json={"name": "n", "project": "p", "role": "read"})).json()
    await operator.delete(f"/admin/keys/{made['id']}")
    await client.post("/intake/tokens", json={"stream": "acme", "expires_in_seconds": 60})
    await client.post(f"/batches/{running}/cancel")
    await client.post(f"/batches/{again}/rerun", json={"lines": "all"})
    await client.post("/replays", json={"source": {"model": "m", "from": "0"}})
    await client.delete(f"/batches/{done}")
    await client.delete(f"/files/{file}")
    await client.post(f"/uploads/{upload_id}/cancel")
    await operator.put("/admin/servers/s", json={"settings": {"url": "http://127.0.0.1:9/v1"}})
    await operator.delete("/admin/servers/s")
    letter = dead_letters.headers("tidemill.outcomes/0/7", [], key=b"k", stage="ingest", reason="r")
    deps.history.topics[topics.DEAD.name] = [LogRecord(at_ms=0, value=b"{}", headers=letter)]
    await operator.post("/admin/dead_letters/requeue", json={"ids": ["tidemill.outcomes/0/7"]})
    hook = {"name": "n", "url": "https://example.com/", "event_types": ["batch.failed"]}
    endpoint = (await client.post("/webhook_endpoints", json=hook)).json()["id"]
    await client.post(f"/webhook_endpoints/{endpoint}", json={})
    await client.post(f"/webhook_endpoints/{endpoint}/rotate_secret", json={})
    await client.delete(f"/webhook_endpoints/{endpoint}")
    session = await signed_in_and_out(client, deps)
    of_webhooks = (Action.WEBHOOK_CREATE, Action.WEBHOOK_UPDATE, Action.WEBHOOK_ROTATE, Action.WEBHOOK_DELETE)
    return {
        **dict.fromkeys(of_webhooks, endpoint),
        Action.KEY_CREATE: made["id"], Action.KEY_REVOKE: made["id"], Action.TOKEN_CREATE: "acme",
        Action.BATCH_CANCEL: running, Action.BATCH_RERUN: again, Action.REPLAY_CREATE: "",
        Action.BATCH_DELETE: done, Action.FILE_DELETE: file, Action.UPLOAD_CANCEL: upload_id,
        Action.SESSION_CREATE: session, Action.SESSION_SWITCH: "p", Action.SESSION_END: session,
        Action.CATALOG_SET: "server/s", Action.CATALOG_REMOVE: "server/s",
        Action.DEAD_LETTER_REQUEUE: "tidemill.outcomes/0/7",
    }  # fmt: skip


def test_every_changing_route_is_recorded_or_exempt(deps):
    """A new one must be added to either list."""
    paths = describe(create_app(deps))["paths"]
    routes = {
        (method.upper(), path) for path, found in paths.items() for method in found if method.upper() in UNSAFE
    }
    assert routes == {*RECORDED, *PLAIN}


async def test_each_action_has_a_record(deps, client, operator):
    """With the key, its project, the target, the address and the request."""
    targets = await asked(client, operator, deps)
    found = {record.action: record for record in records(deps)}
    assert {action: record.target for action, record in found.items()} == targets
    assert set(found) == set(RECORDED.values())
    for action, record in found.items():
        of_service = action in {Action.CATALOG_SET, Action.CATALOG_REMOVE, Action.DEAD_LETTER_REQUEUE}
        by_operator = of_service or action in {Action.KEY_CREATE, Action.KEY_REVOKE}
        assert record.actor == ("key_settings" if by_operator else "key-of-p")
        assert record.project == ("default" if of_service else "p")
        assert (record.at, record.address) == (NOW, "10.0.0.7")
        assert record.request_id.startswith("req_")
    assert found[Action.KEY_CREATE].detail == {"name": "n", "role": "read", "project": "p"}
    assert found[Action.REPLAY_CREATE].detail == {"model": "m", "start": "0"}


@pytest.mark.parametrize("what", ["key", "file", "batch"])
async def test_an_action_without_a_record_fails(deps, client, operator, what):
    """If the log does not take the record, the answer is a 503 and nothing changes."""
    batch, file = await batch_of(client, deps, Status.COMPLETED)
    deps.log.refused.add(topics.AUDIT.name)
    before = len(deps.log.records)
    answer = {
        "key": lambda: operator.post("/admin/keys", json={"name": "n"}),
        "file": lambda: client.delete(f"/files/{file}"),
        "batch": lambda: client.delete(f"/batches/{batch}"),
    }[what]
    assert (await answer()).status_code == 503
    assert len(deps.log.records) == before
    assert (await client.get(f"/files/{file}")).status_code == 200


async def test_read_the_trail(deps, client, operator):
    """An operator reads all of it, by page and filter; an admin its project's; others nothing."""
    await asked(client, operator, deps)
    everything = records(deps)
    made = (await operator.post("/admin/keys", json={"name": "a", "project": "p", "role": "admin"})).json()
    deps.view.fold(topics.KEYS.name, [(k, v, 0) for t, k, v in deps.log.records if t == topics.KEYS.name])
    records(deps)
    whole = (await operator.get("/admin/audit")).json()
    assert len(whole["data"]) == len(everything) + 1
    first = (await operator.get("/admin/audit", params={"limit": 1})).json()
    rest = (await operator.get("/admin/audit", params={"after": first["last_id"]})).json()
    assert [*first["data"], *rest["data"]] == whole["data"]
    by_action = (await operator.get("/admin/audit", params={"action": "file.delete"})).json()["data"]
    assert [entry["action"] for entry in by_action] == ["file.delete"]
    async with client_of(deps, made["secret"]) as admin:
        own = (await admin.get("/admin/audit")).json()["data"]
        assert {entry["project"] for entry in own} == {"p"}
        assert len(own) == sum(record.project == "p" for record in everything) + 1
        assert (await admin.get("/admin/audit", params={"project": "q"})).status_code == 403
    assert (await client.get("/admin/audit")).status_code == 403
    assert (await operator.get("/admin/audit", params={"after": "audit_0"})).status_code == 400


async def test_admins_see_what_operators_do_to_their_project(deps, operator):
    """Created and revoked keys, and replayed lines, even if the replay fails."""
    made = (await operator.post("/admin/keys", json={"name": "n", "project": "q", "role": "admin"})).json()
    source = {"model": "m", "from": "0", "project": "q"}
    await operator.post("/replays", json={"source": source})
    await operator.post("/replays", json={"source": {**source, "project": "*"}})
    records(deps)
    async with client_of(deps, made["secret"]) as admin:
        actions = [entry["action"] for entry in (await admin.get("/admin/audit")).json()["data"]]
    await operator.delete(f"/admin/keys/{made['id']}")
    assert sorted(actions) == ["key.create", "replay.create"]
    assert [(record.project, record.actor) for record in records(deps, "key.revoke")] == [("q", "key_settings")]
    assert [record.project for record in records(deps, "replay.create")] == ["q", "default"]


async def test_a_replay_that_is_forbidden_leaves_no_record_elsewhere(deps, client):
    """Else a key of one project could write into the trail of another, which its admins read."""
    for project in ("q", "*"):
        source = {"model": "m", "from": "0", "project": project}
        assert (await client.post("/replays", json={"source": source})).status_code == 403
    assert not records(deps, "replay.create")


async def test_refused_keys_of_an_address_are_bounded(deps):
    """Ten a minute; then the address must wait, while valid keys from it work."""
    async with client_of(deps, "key-of-nobody") as stranger, client_of(deps, "key-of-p") as client:
        answers = [(await stranger.get("/files")) for _ in range(REFUSALS_MAX + 5)]
        assert [answer.status_code for answer in answers] == [401] * REFUSALS_MAX + [429] * 5
        assert 0 < int(answers[-1].headers["retry-after"]) <= WINDOW_SECONDS
        assert (await client.get("/files")).status_code == 200
    async with client_of(deps, "key-of-nobody", address="10.0.0.8") as other:
        assert (await other.get("/files")).status_code == 401
    await asyncio.gather(*deps.trail._pending)
    found = records(deps, Action.KEY_REFUSE)
    assert [record.address for record in found] == ["10.0.0.7"] * REFUSALS_MAX + ["10.0.0.8"]
    assert all("key-of-nobody" not in record.model_dump_json() for record in found)


async def test_requests_without_a_key_do_not_count_as_refused_keys(deps):
    """Each is a 401, however many there are."""
    async with client_of(deps, "") as client:
        assert {(await client.get("/files")).status_code for _ in range(REFUSALS_MAX + 2)} == {401}
    assert records(deps) == []


@given(waits=st.lists(st.floats(0, 7200), max_size=200))
def test_waits_grow_up_to_a_bound(waits):
    """No address waits for longer than an hour, or gets an answer while it must wait."""
    now = 0.0
    refusals = Refusals(lambda: now)
    until = 0.0
    for step in waits:
        now += step
        seconds = refusals.count("a")
        assert 0 <= seconds <= WAIT_SECONDS_MAX
        if now < until:
            assert seconds == pytest.approx(until - now)
        elif seconds:
            until = now + seconds


def test_counted_addresses_are_bounded():
    """The table drops the oldest one."""
    refusals = Refusals(lambda: 0.0)
    for number in range(trail.ADDRESSES_MAX + 50):
        refusals.count(str(number))
    assert len(refusals._known) == trail.ADDRESSES_MAX


async def test_changed_settings_are_recorded_once(deps):
    """By any process; secrets are masked first."""
    before = Settings(api_key="sk-1234567890123456789012345678901234567890")
    await deps.trail.record_settings(before, None)
    (first,) = records(deps)
    await deps.trail.record_settings(before, deps.view.audit.newest(Action.SETTINGS_CHANGE))
    assert len(records(deps)) == 1
    await deps.trail.record_settings(before.model_copy(update={"file_lines_max": 7}), first)
    second = records(deps)[-1]
    assert second.detail["changed"] == "file_lines_max"
    assert "sk-1234" not in first.model_dump_json() + second.model_dump_json()


async def test_a_process_starts_without_the_record_of_its_settings(deps):
    """If the log is away, the process logs that the record is missing."""
    deps.log.away = True
    with pytest.raises(LogUnavailable):
        await deps.log.send(topics.AUDIT.name, "", b"")
    await replace(deps).trail.record_settings(Settings(), None)
    assert records(deps) == []
