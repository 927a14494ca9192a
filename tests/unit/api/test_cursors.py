"""Every list, read page by page: its cursor may be a deleted object, or one that only another process has."""

import asyncio

import pytest
from support.dependencies import ADMIN, NOW, batch_of, client_of, open_dependencies

from tidemill.api.openapi import describe
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.paging import Page
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, Claim, Erasure, FileRecord, InputRef
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.resources.file import File
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import Delivery, State
from tidemill.schemas.webhooks.table import FORGOTTEN_MAX, Deliveries

MESSAGES = "/v1/messages"
HOOK = {"url": "https://example.com/hook", "event_types": ["batch.failed"]}
HOOKS = "/v1/webhook_endpoints"
URL = "http://127.0.0.1:9/v1"
COUNT = 5
OTHERS = {"/v1/usage", "/v1/batches/{batch_id}/results", "/v1/batches/{batch_id}/compare"}
"""Lists whose cursor is a place and no object."""


def ended(endpoint: str) -> Batch:
    """A batch that can be deleted."""
    return batch_of(ids.new_batch_id(), endpoint=endpoint, status=Status.FAILED, failed_at=NOW)


async def batches(deps, client) -> str:
    del client
    for _ in range(COUNT):
        deps.view.put_batch(BatchRecord(project="default", batch=ended("/v1/embeddings")))
    return "/v1/batches"


async def message_batches(deps, client) -> str:
    del client
    for _ in range(COUNT):
        deps.view.put_batch(BatchRecord(project="default", batch=ended(MESSAGES)))
    return "/v1/messages/batches"


async def files(deps, client) -> str:
    del client
    for number in range(COUNT):
        file = File(id=ids.new_file_id("default"), bytes=1, created_at=NOW, filename="f", purpose="batch")
        deps.view.put_file(FileRecord(project="default", file=file, key=file.id, sha256="0" * 64), number)
    return "/v1/files"


async def endpoints(deps, client) -> str:
    del deps
    for number in range(COUNT):
        (await client.post(HOOKS, json=HOOK | {"name": str(number)})).raise_for_status()
    return HOOKS


async def deliveries(deps, client) -> str:
    made = (await client.post(HOOKS, json=HOOK | {"name": "n"})).json()["id"]
    for number in range(COUNT):
        event = messages.event_of(f"batch_{number}", "failed", NOW)
        found = Delivery(
            id=messages.delivery_id(made, event.id), project="default", endpoint_id=made, event=event,
            state=State.FAILED, created_at=NOW + number // 2, expires_at=NOW + 9,
        )  # fmt: skip
        deps.webhooks.deliveries.apply(found.id, codec.encode(found))
    return f"{HOOKS}/{made}/deliveries"


async def keys(deps, client) -> str:
    del deps
    for number in range(COUNT):
        (await client.post("/v1/admin/keys", json={"name": str(number), "role": "read"})).raise_for_status()
    return "/v1/admin/keys"


async def servers(deps, client) -> str:
    del deps
    for number in range(COUNT):
        path = f"/v1/admin/servers/gpu-{number}"
        (await client.put(path, json={"settings": {"url": f"{URL}/{number}"}})).raise_for_status()
    return "/v1/admin/servers"


async def models(deps, client) -> str:
    await servers(deps, client)
    for number in range(COUNT):
        path = f"/v1/admin/models/m{number}"
        (await client.put(path, json={"settings": {"servers": [f"gpu-{number}"]}})).raise_for_status()
    return "/v1/admin/models"


async def audit(deps, client) -> str:
    await keys(deps, client)
    deps.view.fold(topics.AUDIT.name, [("", value, place) for place, value in enumerate(deps.log.trail)])
    return "/v1/admin/audit"


LISTS = {
    "/v1/batches": batches, "/v1/messages/batches": message_batches, "/v1/files": files, HOOKS: endpoints,
    f"{HOOKS}/{{endpoint_id}}/deliveries": deliveries, "/v1/admin/keys": keys, "/v1/admin/servers": servers,
    "/v1/admin/models": models, "/v1/admin/audit": audit,
}  # fmt: skip
UNDELETABLE = {"/v1/admin/audit", f"{HOOKS}/{{endpoint_id}}/deliveries"}


@pytest.fixture
async def deps(tmp_path):
    async with open_dependencies(tmp_path, settings=Settings()) as deps:
        yield deps


@pytest.fixture
async def client(deps):
    async with client_of(deps, ADMIN, base="http://api") as client:
        yield client


async def forget(deps, client, path: str, route: str, object_id: str) -> None:
    if route == f"{HOOKS}/{{endpoint_id}}/deliveries":
        # As the owner of the partition forgets all but the last that ended.
        deps.webhooks.deliveries.apply(object_id, None)
    elif route not in UNDELETABLE:
        answer = await client.delete(f"{path}/{object_id}")
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("route", LISTS)
@pytest.mark.parametrize("limit", [1, 2])
async def test_a_list_goes_on_after_deleted_objects(deps, client, route, limit):
    """Every object is on one page, and no page is a 400."""
    path = await LISTS[route](deps, client)
    name = "after_id" if route.startswith(MESSAGES) else "after"
    whole = [each["id"] for each in (await client.get(path)).json()["data"]]
    assert len(whole) >= COUNT
    seen, query = [], {"limit": limit}
    while True:
        answer = await client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        seen += [each["id"] for each in page["data"]]
        for each in page["data"]:
            await forget(deps, client, path, route, each["id"])
        if not page["has_more"]:
            break
        query[name] = page["last_id"]
    assert seen == whole


async def test_every_list_is_tried(client):
    """Those with a cursor in the OpenAPI document."""
    paths = describe(client._transport.app)["paths"]
    cursors = {
        path
        for path, operations in paths.items()
        for each in operations.get("get", {}).get("parameters", ())
        if each["name"] in {"after", "after_id"}
    }
    assert cursors == LISTS.keys() | OTHERS


async def test_a_delivery_whose_state_changes_is_still_a_cursor(deps, client):
    """A page of a state goes on after an object that has left the state."""
    path = await deliveries(deps, client)
    query = {"state": "failed", "limit": 1}
    first = (await client.get(path, params=query)).json()
    found = deps.webhooks.deliveries.get(first["last_id"])
    deps.webhooks.deliveries.apply(found.id, codec.encode(found.model_copy(update={"state": State.PENDING})))
    rest = (await client.get(path, params=query | {"limit": 9, "after": first["last_id"]})).json()
    assert len(rest["data"]) == COUNT - 1


def test_forgotten_deliveries_have_a_bound():
    """The last ones are remembered."""
    table = Deliveries()
    for number in range(FORGOTTEN_MAX + 1):
        event = messages.event_of(f"batch_{number}", "failed", NOW)
        found = Delivery(
            id=str(number), project="p", endpoint_id="we_1", event=event, created_at=number, expires_at=NOW
        )
        table.apply(found.id, codec.encode(found))
        table.apply(found.id, None)
    assert (table.created_at("we_1", "0"), table.created_at("we_1", "1")) == (None, 1)
    assert table.created_at("we_2", "1") is None


async def new_batch(client) -> str:
    body = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    (await client.post("/v1/batches", json=body)).raise_for_status()
    return "/v1/batches"


async def new_message_batch(client) -> str:
    body = {"requests": [{"custom_id": "a", "params": {"model": "m"}}]}
    (await client.post("/v1/messages/batches", json=body)).raise_for_status()
    return "/v1/messages/batches"


async def new_file(client) -> str:
    form = {"data": {"purpose": "batch"}, "files": {"file": ("f", b'{"custom_id": "a"}')}}
    (await client.post("/v1/files", **form)).raise_for_status()
    return "/v1/files"


async def new_key(client) -> str:
    (await client.post("/v1/admin/keys", json={"name": "n", "role": "read"})).raise_for_status()
    return "/v1/admin/keys"


async def new_action(client) -> str:
    await new_key(client)
    return "/v1/admin/audit"


def records_of(deps) -> dict[str, list]:
    """Those of topics that a view follows."""
    found = {topics.AUDIT.name: [("", value, place) for place, value in enumerate(deps.log.trail)]}
    for topic in (topics.CLAIMS.name, topics.FILES.name, topics.KEYS.name):
        found[topic] = [
            (*record[1:], place) for place, record in enumerate(deps.log.records) if record[0] == topic
        ]
    return found


@pytest.mark.parametrize("make", [new_batch, new_message_batch, new_file, new_key, new_action])
async def test_a_cursor_of_another_process_is_awaited(deps, client, tmp_path, make):
    """An id that no process has given is refused after the wait, and another text at once."""
    path = await make(client)
    name = "after_id" if path.startswith(MESSAGES) else "after"
    if deps.log.trail:
        deps.view.fold(topics.AUDIT.name, records_of(deps)[topics.AUDIT.name])
    cursor = (await client.get(path)).json()["data"][-1]["id"]
    async with (
        open_dependencies(tmp_path / "behind") as behind,
        client_of(behind, ADMIN, base="http://b") as other,
    ):
        other_id = cursor[:-1] + ("0" if cursor[-1] != "0" else "1")
        for query in ({name: cursor + "x"}, {name: other_id}):
            answer = await other.get(path, params=query)
            assert (answer.status_code, answer.json()["error"].get("param")) in {(400, name), (400, None)}
        asking = asyncio.create_task(other.get(path, params={name: cursor}))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done()
        for topic, records in records_of(deps).items():
            if records:
                behind.view.fold(topic, records)
        answer = await asking
        assert (answer.status_code, answer.json()["has_more"]) == (200, False), answer.text


async def test_a_batch_is_no_cursor_of_files(deps):
    """Also a batch of which the view has only the claim, or what a deletion left."""
    deleted, claimed = ended("/v1/embeddings"), ended("/v1/embeddings")
    deps.view.put_batch(BatchRecord(project="default", batch=deleted))
    deps.view.delete_batch(deleted.id, Erasure(project="default", at=NOW))
    command = BatchCreated(project="default", batch=claimed, input=InputRef(key="k", bytes=1))
    claim = codec.encode(Claim(command=command, fingerprint="x", is_retry=False))
    deps.view.fold(topics.CLAIMS.name, [(claimed.id, claim, 0)])
    for batch in (deleted, claimed):
        page = Page(limit=9, after=batch.id)
        assert deps.view.batches("default", BatchesQuery(after=batch.id))[0] == []
        with pytest.raises(ApiError):
            deps.view.files("default", page, None)
