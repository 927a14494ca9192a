"""The routes of webhook endpoints: refusals, records, and the health that they show."""

import asyncio
import base64
import functools
from dataclasses import replace

import pytest
from support import dependencies
from support.dependencies import NOW, fault, open_dependencies

from tidemill.api.routes import webhooks
from tidemill.api.webhooks import Webhooks
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.webhooks import signature
from tidemill.schemas.webhooks.messages import HEALTH, Health, State, decode_endpoint, decode_event
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.sealing.wrapping import FileWrapper

client_of = functools.partial(dependencies.client_of, base="http://api")

HOOK = {"name": "n", "url": "https://example.com/hook", "event_types": ["batch.failed"]}
PATH = "/v1/webhook_endpoints"


@pytest.fixture
async def deps(tmp_path):
    """Dependencies whose projects may have three endpoints."""
    settings = Settings(limits={"webhook_endpoints_max": 3})
    async with open_dependencies(tmp_path, settings=settings) as deps:
        yield deps


@pytest.fixture
async def client(deps):
    """A client of the project `p`."""
    async with client_of(deps) as client:
        yield client


async def made(client, **fields):
    answer = await client.post(PATH, json=HOOK | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_secret_is_shown_once_and_stored_encrypted(deps, client, tmp_path):
    """No record contains it; who has the key file can read it, for its endpoint alone."""
    found = await made(client)
    secret = base64.b64decode(found["signing_secret"].removeprefix(signature.PREFIX))
    assert len(secret) == signature.SECRET_BYTES
    shown = {name: value for name, value in found.items() if name != "signing_secret"}
    assert (await client.get(f"{PATH}/{found['id']}")).json() == shown
    assert (await client.get(PATH)).json()["data"] == [shown]
    records = [value for topic, _, value in deps.log.records if topic == topics.WEBHOOKS.name]
    for value in (*records, *deps.log.trail):
        assert secret not in value
        assert found["signing_secret"].encode()[6:] not in value
    kept = WebhookSecrets(FileWrapper(tmp_path / "encryption_keys"))
    record = decode_endpoint(records[0])
    assert await kept.valid(record, NOW) == [secret]
    moved = record.endpoint.model_copy(update={"id": "we_other"})
    with pytest.raises(OSError, match="damaged"):
        await kept.valid(record.model_copy(update={"endpoint": moved}), NOW)
    for wrapped in ("é", "a", "!"):
        damaged = record.secrets[0].model_copy(update={"wrapped": wrapped})
        with pytest.raises(OSError, match="damaged"):
            await kept.valid(record.model_copy(update={"secrets": (damaged,)}), NOW)


async def test_a_rotation_keeps_the_old_secret_on_request(deps, client):
    """For a day; a second rotation leaves two secrets, not three."""
    first = await made(client)
    path = f"{PATH}/{first['id']}/rotate_secret"
    second = (await client.post(path, json={"keep_old_secret_active_for_24_hours": True})).json()
    third = (await client.post(path, json={"keep_old_secret_active_for_24_hours": True})).json()
    record = deps.webhooks.endpoints.get(first["id"])
    valid = await deps.webhooks._wrapped.valid(record, NOW)
    assert [signature.shown(each) for each in valid] == [third["signing_secret"], second["signing_secret"]]
    assert len(await deps.webhooks._wrapped.valid(record, NOW + 86_400)) == 1
    fourth = (await client.post(path)).json()
    record = deps.webhooks.endpoints.get(first["id"])
    assert list(map(signature.shown, await deps.webhooks._wrapped.valid(record, NOW))) == [
        fourth["signing_secret"]
    ]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"url": "http://example.com/"}, (400, "url", "invalid_value")),
        ({"url": "https://169.254.169.254/latest"}, (400, "url", "invalid_value")),
        ({"url": "https://localhost/"}, (400, "url", "invalid_value")),
        ({"url": "https://u:p@example.com/"}, (400, "url", "invalid_value")),
        ({"url": ""}, (400, "url", "empty_string")),
        ({"url": None}, (400, "url", "missing_required_parameter")),
        ({"event_types": []}, (400, "event_types", "invalid_value")),
        ({"event_types": ["response.completed"]}, (400, "event_types[0]", "invalid_value")),
        ({"name": "x" * 101}, (400, "name", "string_above_max_length")),
    ],
)
async def test_a_bad_endpoint_is_refused(deps, client, fields, wanted):
    """At creation, and at a change, with the name of the field."""
    assert fault(await client.post(PATH, json=HOOK | fields)) == wanted
    found = await made(client)
    if None not in fields.values():
        assert fault(await client.post(f"{PATH}/{found['id']}", json=fields)) == wanted
    assert deps.webhooks.endpoints.get(found["id"]).endpoint.url == HOOK["url"]


async def test_a_project_has_a_limited_number(client, deps):
    """Deleting one makes room; another project has its own number."""
    found = [await made(client) for _ in range(3)]
    answer = await client.post(PATH, json=HOOK)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    assert (await client.delete(f"{PATH}/{found[0]['id']}")).json() == {
        "id": found[0]["id"], "object": "webhook_endpoint.deleted", "deleted": True,
    }  # fmt: skip
    await made(client)
    async with client_of(deps, "key-of-q") as other:
        await made(other)


async def test_a_project_has_a_limited_number_at_once(client, deps, monkeypatch):
    """Requests that are under way count."""
    record = deps.trail.record

    async def later(*args, **more):
        for _ in range(1_000):
            await asyncio.sleep(0)
        await record(*args, **more)

    monkeypatch.setattr(deps.trail, "record", later)
    answers = await asyncio.gather(*(client.post(PATH, json=HOOK) for _ in range(9)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 6


async def test_pages_go_from_the_newest_to_the_oldest(client):
    """With the cursor of the page before; an unknown one is a fault."""
    found = [(await made(client))["id"] for _ in range(3)][::-1]
    page = (await client.get(f"{PATH}?limit=2")).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (found[:2], True)
    page = (await client.get(f"{PATH}?limit=2&after={page['last_id']}")).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (found[2:], False)
    assert fault(await client.get(f"{PATH}?after=we_unknown")) == (400, "after", "invalid_value")


async def test_a_disabled_endpoint_says_so_until_it_changes(deps, client):
    """Any update enables it; one that changes nothing does not move `updated_at`."""
    found = await made(client)
    health = Health(project="p", endpoint_id=found["id"], failing_since=NOW - 500_000, disabled_at=NOW + 5)
    deps.webhooks.deliveries.apply(HEALTH + found["id"], codec.encode(health))
    shown = (await client.get(f"{PATH}/{found['id']}")).json()
    assert shown["tidemill"] == {"enabled": False, "failing_since": NOW - 500_000, "disabled_at": NOW + 5}
    # The clock of webhooks is ahead.
    assert (await client.post(f"{PATH}/{found['id']}", json={})).json()["tidemill"]["enabled"]
    again = health.model_copy(update={"disabled_at": NOW + 9})
    deps.webhooks.deliveries.apply(HEALTH + found["id"], codec.encode(again))
    later = Webhooks(deps.log, deps.webhooks._wrapped, (), lambda: NOW + 10)
    later.endpoints, later.deliveries = deps.webhooks.endpoints, deps.webhooks.deliveries
    async with client_of(replace(deps, webhooks=later)) as afterwards:
        shown = (await afterwards.post(f"{PATH}/{found['id']}", json={})).json()
        assert shown["tidemill"] == {"enabled": True, "failing_since": None, "disabled_at": None}
        assert shown["updated_at"] == NOW
        shown = (await afterwards.post(f"{PATH}/{found['id']}", json={"name": "other"})).json()
        assert (shown["updated_at"], shown["name"]) == (NOW + 10, "other")


async def test_without_a_key_file_nothing_is_created(deps):
    """Rather than a secret in clear."""
    bare = Webhooks(deps.log, WebhookSecrets(None), (), deps.clock)
    async with client_of(replace(deps, webhooks=bare)) as client:
        assert fault(await client.post(PATH, json=HOOK)) == (409, None, "no_encryption_key")
    assert not [topic for topic, _, _ in deps.log.records if topic == topics.WEBHOOKS.name]


async def test_deliveries_are_listed_and_sent_again(deps, client):
    """A test leaves one; a resend is a record for the owner of the endpoint."""
    found = await made(client)
    path = f"{PATH}/{found['id']}"
    answer = (await client.post(f"{path}/test", json={"event_type": "batch.expired"})).json()
    assert answer == {
        "object": "webhook_endpoint.test", "event_type": "batch.expired", "status_code": 204, "success": True,
        "webhook_endpoint_id": found["id"],
    }  # fmt: skip
    (listed,) = (await client.get(f"{path}/deliveries")).json()["data"]
    assert (listed["state"], listed["attempts"], listed["is_test"]) == ("succeeded", 1, True)
    assert not (await client.get(f"{path}/deliveries?state=pending")).json()["data"]
    assert (await client.post(f"{path}/deliveries/{listed['id']}/resend")).json() == listed
    wish = decode_event(deps.log.records[-1][2])
    assert (deps.log.records[-1][1], wish.delivery_id) == (found["id"], listed["id"])
    assert (await client.post(f"{path}/deliveries/whd_x/resend")).status_code == 404
    other = await made(client)
    assert (await client.post(f"{PATH}/{other['id']}/deliveries/{listed['id']}/resend")).status_code == 404


async def test_a_page_of_deliveries_costs_its_size(deps, client, monkeypatch):
    """However many wait; several may have one time of creation, and their last records any order."""
    found = await made(client)
    path, table = f"{PATH}/{found['id']}", deps.webhooks.deliveries
    await client.post(f"{path}/test", json={"event_type": "batch.expired"})
    (ended,) = table.of(found["id"])
    for number in range(10_000):
        fields = {
            "id": f"whd_{number * 7_919 % 10_000:032x}",
            "state": State.PENDING,
            "created_at": NOW + number // 3,
        }
        each = ended.model_copy(update=fields)
        table.apply(each.id, codec.encode(each))
    ordered = sorted(table.of(found["id"]), key=lambda each: (each.created_at, each.id), reverse=True)
    shape, shaped = webhooks._delivery, []
    monkeypatch.setattr(webhooks, "_delivery", lambda each: (shaped.append(each), shape(each))[1])
    listed = (await client.get(f"{path}/deliveries?limit=5")).json()
    later = (await client.get(f"{path}/deliveries?limit=5&after={listed['last_id']}&state=pending")).json()
    assert [each["id"] for page in (listed, later) for each in page["data"]] == [each.id for each in ordered[:10]]
    assert listed["has_more"]
    assert len(shaped) == 2 * (5 + 1)


async def test_deliveries_are_listed_by_their_last_state(deps, client):
    """Each in one state at a time, until it is forgotten."""
    found = await made(client)
    path, table = f"{PATH}/{found['id']}", deps.webhooks.deliveries
    await client.post(f"{path}/test", json={"event_type": "batch.expired"})
    (known,) = table.of(found["id"])
    for state in (State.PENDING, State.FAILED, State.FAILED, None):
        table.apply(known.id, None if state is None else codec.encode(known.model_copy(update={"state": state})))
        wanted = "", *(f"?state={one}" for one in State)
        listed = [len((await client.get(f"{path}/deliveries{query}")).json()["data"]) for query in wanted]
        assert listed == [int(state is not None), *(int(state is one) for one in State)]


async def test_a_deletion_by_another_process_is_not_undone(deps, client):
    """It is read before the own change, which came to the log earlier, has returned."""
    found = await made(client)
    endpoints = deps.webhooks.endpoints
    value = codec.encode(endpoints.get(found["id"]))
    for read in ((value, 10**6), (None, 10**6 + 1)):
        endpoints.apply(found["id"], *read)
    endpoints.put(found["id"], value, 10**6)
    assert endpoints.get(found["id"]) is None
    endpoints.put(found["id"], value, 10**6 + 2)
    endpoints.apply(found["id"], None, 10**6 + 1)
    assert endpoints.get(found["id"]) is not None
    endpoints.apply(found["id"], None, 10**6 + 3)
    assert endpoints.get(found["id"]) is None


async def test_a_delivery_that_another_process_has_shown_is_found(deps, client):
    """The route waits for it for a moment."""
    found = await made(client)
    path, table = f"{PATH}/{found['id']}", deps.webhooks.deliveries
    await client.post(f"{path}/test", json={"event_type": "batch.expired"})
    (known,) = table.of(found["id"])
    table.apply(known.id, None)
    asking = asyncio.create_task(client.post(f"{path}/deliveries/{known.id}/resend"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asking.done()
    table.apply(known.id, codec.encode(known))
    deps.webhooks.changes.notify(known.id)
    assert (await asking).status_code == 200


async def test_what_another_process_has_created_is_found(deps, client):
    """The route waits for it for a moment."""
    found = await made(client)
    value = codec.encode(deps.webhooks.endpoints.get(found["id"]))
    deps.webhooks.endpoints.apply(found["id"], None, 10**6)
    asking = asyncio.create_task(client.get(f"{PATH}/{found['id']}"))
    for _ in range(20):
        await asyncio.sleep(0)
    deps.webhooks.endpoints.apply(found["id"], value, 10**6 + 1)
    deps.webhooks.changes.notify(found["id"])
    assert (await asking).status_code == 200


BATCH = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}
CALLBACK = {"callback_url": "https://example.com/of-this-batch?x=1"}


async def test_a_callback_needs_a_secret_of_the_project(deps, client):
    """Which a rotation makes; it is no endpoint of the list, and counts against no limit."""
    assert fault(await client.post("/v1/batches", json=BATCH | CALLBACK)) == (
        400, "callback_url", "no_callback_secret",
    )  # fmt: skip
    first = (await client.post(f"{PATH}/callback/rotate_secret")).json()
    second = (
        await client.post(f"{PATH}/callback/rotate_secret", json={"keep_old_secret_active_for_24_hours": True})
    ).json()
    assert first["id"] == second["id"] == ids.callback_endpoint_id("p")
    valid = await deps.webhooks._wrapped.valid(deps.webhooks.endpoints.get(first["id"]), NOW)
    assert list(map(signature.shown, valid)) == [second["signing_secret"], first["signing_secret"]]
    made_batch = (await client.post("/v1/batches", json=BATCH | CALLBACK)).json()
    assert made_batch["tidemill"]["callback_url"] == CALLBACK["callback_url"]
    assert not (await client.get(PATH)).json()["data"]
    assert (await client.get(f"{PATH}/callback")).json()["id"] == first["id"]
    assert (await client.get(f"{PATH}/callback/deliveries")).json()["data"] == []
    for path, body in ((f"{PATH}/callback", {}), (f"{PATH}/{first['id']}/test", {"event_type": "batch.failed"})):
        assert (await client.post(path, json=body)).status_code == 400
    for _ in range(3):
        await made(client)
    async with client_of(deps, "key-of-q") as other:
        assert (await other.get(f"{PATH}/{first['id']}")).status_code == 404
        assert fault(await other.post("/v1/batches", json=BATCH | CALLBACK))[2] == "no_callback_secret"
    assert (await client.delete(f"{PATH}/callback")).json()["id"] == first["id"]
    assert (await client.get(f"{PATH}/callback")).status_code == 404


@pytest.mark.parametrize("url", ["http://example.com/", "https://127.0.0.1/", "https://a:b@example.com/", "x", ""])
async def test_a_bad_callback_is_refused(client, url):
    """Before the batch is made."""
    await client.post(f"{PATH}/callback/rotate_secret")
    assert fault(await client.post("/v1/batches", json=BATCH | {"callback_url": url}))[:2] == (400, "callback_url")


async def test_a_key_stands_for_one_callback(client):
    """The same request with another callback is another request."""
    await client.post(f"{PATH}/callback/rotate_secret")
    headers = {"idempotency-key": "k"}
    assert (await client.post("/v1/batches", json=BATCH | CALLBACK, headers=headers)).status_code == 200
    assert (await client.post("/v1/batches", json=BATCH | CALLBACK, headers=headers)).status_code == 200
    assert (await client.post("/v1/batches", json=BATCH, headers=headers)).status_code == 409
