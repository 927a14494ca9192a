"""Keys of projects: how they are made and revoked, and what each role may do."""

import asyncio
import functools
import logging
from dataclasses import replace

import pytest
from support import dependencies
from support.dependencies import ADMIN, NOW, fault, open_dependencies
from support.trust import SIGNER, VERIFIER

from tidemill import metrics
from tidemill.api.app import create_app
from tidemill.api.openapi import describe
from tidemill.api.routes.admin.keys import sign_again
from tidemill.api.view.sqlite import Database
from tidemill.api.view.view import View
from tidemill.kafka.follower import Tail
from tidemill.schemas.log import codec, producer_token, topics
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.signing import KEY_RECORD, Signer, Verifier
from tidemill.schemas.resources import access

client_of = functools.partial(dependencies.client_of, base="http://api")

MADE = {"name": "ci", "project": "team", "role": "write"}


@pytest.fixture
async def admin(deps):
    """A client with the key of the settings: an operator's."""
    async with client_of(deps, ADMIN) as client:
        yield client


async def made(admin, **fields) -> dict[str, object]:
    """A new key, with its secret."""
    answer = await admin.post("/v1/admin/keys", json=MADE | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_secret_is_shown_once_and_stored_nowhere(deps, admin, caplog):
    """Neither the log, log files, lists nor the view contain it."""
    caplog.set_level(logging.DEBUG)
    key = await made(admin)
    secret = key.pop("secret")
    assert access.is_secret(secret)
    assert key == {
        "id": key["id"], "object": "key", "name": "ci", "project": "team", "role": "write",
        "hint": access.hint(secret), "created_at": NOW, "created_by": "key_settings", "expires_at": None,
        "revoked_at": None,
    }  # fmt: skip
    assert (await admin.get("/v1/admin/keys")).json()["data"] == [key]
    assert (await admin.get(f"/v1/admin/keys/{key['id']}")).json() == key
    ((topic, name, value),) = deps.log.records
    assert (topic, name) == (topics.KEYS.name, key["id"])
    payload, _ = VERIFIER.payload(KEY_RECORD, value)
    assert codec.decode_key(payload).sha256 == access.digest(secret)
    rows = deps.view._database.read("SELECT body FROM keys")
    for place in (str(value), str(payload), caplog.text, str(rows)):
        assert secret not in place
        assert secret[5:-4] not in place


async def test_a_key_is_valid_until_it_is_revoked(deps, admin):
    """Then the answer is a 401 that says so; a second revocation changes nothing."""
    key = await made(admin)
    async with client_of(deps, key["secret"]) as client:
        assert (await client.get("/v1/files")).status_code == 200
        for _ in range(2):
            answer = await admin.delete(f"/v1/admin/keys/{key['id']}")
            assert answer.json() == {"id": key["id"], "object": "key", "deleted": True}
        answer = await client.get("/v1/files")
        assert fault(answer) == (401, None, "invalid_api_key")
        assert "is revoked" in answer.json()["error"]["message"]
        assert key["secret"] not in answer.text
    assert (await admin.get(f"/v1/admin/keys/{key['id']}")).json()["revoked_at"] == NOW
    assert len(deps.log.records) == 2


async def test_a_key_expires(deps, admin):
    """By the clock of the process that checks it."""
    key = await made(admin, expires_in_seconds=60)
    assert key["expires_at"] == NOW + 60
    record = deps.view.keyring.by_id(key["id"])
    old = record.key.model_copy(update={"id": "key_old", "expires_at": NOW})
    deps.view.keyring.put(KeyRecord(key=old, sha256=access.digest(secret := access.new_secret())), SIGNER.kid)
    async with client_of(deps, key["secret"]) as client, client_of(deps, secret) as late:
        assert (await client.get("/v1/files")).status_code == 200
        answer = await late.get("/v1/files")
    assert fault(answer) == (401, None, "invalid_api_key")
    assert "is expired" in answer.json()["error"]["message"]


async def test_an_older_record_does_not_undo_a_revocation(deps, admin):
    """The view may read the record of the creation after this process has revoked the key."""
    key = await made(admin)
    await admin.delete(f"/v1/admin/keys/{key['id']}")
    for offset, (_, name, value) in enumerate(list(deps.log.records)):
        deps.view.fold(topics.KEYS.name, [(name, value, offset)])
        assert deps.view.keyring.by_id(key["id"]).key.revoked_at == NOW


def hostile(log):
    """Records that a writer of the topic could forge after reading it."""
    made, revoked = ((name, value) for _, name, value in log.records)
    key, _ = VERIFIER.key_record(*made)
    raised = key.model_copy(update={"key": key.key.model_copy(update={"role": access.Role.OPERATOR})})
    return {
        "an old record": [made],
        "a tombstone": [(made[0], None)],
        "a tombstone, then an old record": [(made[0], None), made],
        "an unsigned record": [(made[0], codec.encode(raised))],
        "a record that a stranger has signed": [(made[0], Signer.made().key_record(raised))],
        "the signature of another record": [
            (made[0], made[1].rpartition(b".")[0] + b"." + revoked[1].rpartition(b".")[2])
        ],
        "a record under another id": [("key_of_mine", made[1])],
    }


@pytest.mark.parametrize("name", range(7))
async def test_forged_records_make_no_key_valid(deps, admin, tmp_path, name):
    """Neither in a process that has seen the revocation, nor in one that reads the topic from its beginning."""
    key = await made(admin)
    await admin.delete(f"/v1/admin/keys/{key['id']}")
    written = list(hostile(deps.log).values())[name]
    fresh = View(Database(tmp_path / "fresh"), lambda: NOW, VERIFIER)
    try:
        for view in (deps.view, fresh):
            records = [(name, value) for _, name, value in deps.log.records]
            view.fold(topics.KEYS.name, [(*record, at) for at, record in enumerate([*records, *written])])
            assert view.keyring.by_id(key["id"]).key.revoked_at == NOW
            assert view.keyring.by_id("key_of_mine") is None
            assert view.keyring.by_digest(access.digest(key["secret"])).key.role == "write"
    finally:
        fresh.close()


async def test_a_forged_key_is_refused_counted_and_logged(deps, caplog):
    """The log line has its offset, in the template that `log_dedup` thins."""
    stranger, secret, before = Signer.made(), access.new_secret(), metrics.KEYS_REFUSED._value.get()
    key = access.ApiKey(id="key_x", name="x", project="p", role="operator", hint="h", created_at=NOW)
    record = KeyRecord(key=key, sha256=access.digest(secret))
    forged = [stranger.key_record(record), codec.encode(record)] * 50
    deps.view.fold(topics.KEYS.name, [("key_x", value, at) for at, value in enumerate(forged)])
    async with client_of(deps, secret) as client:
        assert (await client.get("/v1/files")).status_code == 401
    assert metrics.KEYS_REFUSED._value.get() == before + 100
    assert {record.msg for record in caplog.records if "of the keys" in record.msg} == {
        "ignoring record %d of the keys: %s"
    }


async def test_a_new_signing_key_replaces_another(deps, admin, tmp_path):
    """It signs all records again; then the old one can be removed."""
    key, gone = await made(admin), await made(admin)
    await admin.delete(f"/v1/admin/keys/{gone['id']}")
    old = [(name, value, at) for at, (_, name, value) in enumerate(deps.log.records)]
    young = Signer.made()
    for verifier, known in ((Verifier([young.public]), False), (Verifier([young.public, SIGNER.public]), True)):
        view = View(Database(tmp_path / "again"), lambda: NOW, verifier)
        view.fold(topics.KEYS.name, old)
        assert (view.keyring.by_id(key["id"]) is not None) is known
        await sign_again(replace(deps, view=view, signer=young))
        await sign_again(replace(deps, view=view, signer=young))
        view.close()
    again = [(name, value, len(old) + at) for at, (_, name, value) in enumerate(deps.log.records[len(old) :])]
    assert len(again) == 2
    view = View(Database(tmp_path / "again"), lambda: NOW, Verifier([young.public]))
    try:
        assert view.keyring.by_id(key["id"]) is None
        assert view.resume(topics.KEYS.name, Tail(identity="c/t", end=9)) == 0
        view.fold(topics.KEYS.name, [*old, *again])
        assert view.keyring.by_id(key["id"]).key.revoked_at is None
        assert view.keyring.by_id(gone["id"]).key.revoked_at == NOW
    finally:
        view.close()


async def test_an_unknown_key_gets_a_503_until_the_view_has_caught_up(deps, admin):
    """A process that has just started does not know all keys, and clients give up after a 401."""
    secret = (await made(admin))["secret"]
    starting = replace(deps, reading=replace(deps.reading, is_ready=lambda: False))
    for key, status in ((secret, 503), (access.new_secret(), 503), ("sk-wrong", 401), (ADMIN, 503)):
        async with client_of(starting, key) as client:
            assert (await client.get("/v1/files")).status_code == status


@pytest.mark.parametrize(
    "key", ["", "sk-wrong-key-0123456789", "sk-" + "a" * 49, "ö", access.new_secret()], ids=range(5)
)
async def test_malformed_keys_are_refused(deps, key):
    """Any text."""
    async with client_of(deps, "") as client:
        answer = await client.get("/v1/files", headers={"authorization": f"Bearer {key}".encode()})
    assert answer.status_code == 401
    assert not key or len(key) < 16 or key not in answer.text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": None}, ("name", "missing_required_parameter")),
        ({"name": "x" * 101}, ("name", "string_above_max_length")),
        ({"name": 1}, ("name", "invalid_type")),
        ({"project": "a/b"}, ("project", "invalid_value")),
        ({"project": "x\r\ny: z"}, ("project", "invalid_value")),
        ({"role": "root"}, ("role", "invalid_value")),
        ({"expires_in_seconds": 1}, ("expires_in_seconds", "integer_below_min_value")),
        ({"expires_in_seconds": True}, ("expires_in_seconds", "invalid_type")),
        ({"expires_in_seconds": 10**12}, ("expires_in_seconds", "integer_above_max_value")),
        ({"expires_at": 5}, ("expires_at", "unknown_parameter")),
        ({"sha256": "0"}, ("sha256", "unknown_parameter")),
    ],
)
async def test_invalid_requests_for_keys(deps, admin, change, expected):
    """The error names the invalid field, and no key is created."""
    body = {name: value for name, value in (MADE | change).items() if value is not None}
    assert fault(await admin.post("/v1/admin/keys", json=body)) == (400, *expected)
    assert deps.log.records == []


async def test_lists_of_keys(admin):
    """Of all projects or one, page by page, the newest first."""
    keys = [await made(admin, project=project) for project in ("a", "b", "a")]
    ids = sorted((key["id"] for key in keys), reverse=True)
    listed, after = [], None
    while True:
        query = {"limit": 1} | ({"after": after} if after else {})
        page = (await admin.get("/v1/admin/keys", params=query)).json()
        listed += [key["id"] for key in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert listed == ids
    page = (await admin.get("/v1/admin/keys", params={"project": "a"})).json()
    assert {key["id"] for key in page["data"]} == {keys[0]["id"], keys[2]["id"]}
    assert fault(await admin.get("/v1/admin/keys", params={"after": "key_x"})) == (400, "after", "invalid_value")
    assert fault(await admin.get("/v1/admin/keys/key_x")) == (404, None, None)
    assert fault(await admin.delete("/v1/admin/keys/key_x")) == (404, None, None)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_key_that_another_process_has_just_made_is_found(deps, admin, tmp_path, method):
    """The route waits for it for a moment: an admin who revokes it must not read that there is none."""
    (tmp_path / "other").mkdir()
    async with open_dependencies(tmp_path / "other") as other, client_of(other, ADMIN) as client:
        key = await made(client)
        (value,) = (value for topic, _, value in other.log.records if topic == topics.KEYS.name)
    asking = asyncio.create_task(admin.request(method, f"/v1/admin/keys/{key['id']}"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asking.done()
    deps.view.fold(topics.KEYS.name, [(key["id"], value, 0)])
    assert (await asking).status_code == 200


async def test_without_the_log_no_key_is_created_or_revoked(deps, admin):
    """The answer is a 503, and the key stays valid."""
    key = await made(admin)
    deps.log.away = True
    assert (await admin.post("/v1/admin/keys", json=MADE)).status_code == 503
    assert (await admin.delete(f"/v1/admin/keys/{key['id']}")).status_code == 503
    assert len((await admin.get("/v1/admin/keys")).json()["data"]) == 1


def operations(deps):
    """Every route that needs a key: method and path."""
    described = describe(create_app(deps))
    return [
        (method.upper(), path)
        for path, found in described["paths"].items()
        for method in found
        if path.startswith("/v1")
    ]


async def test_an_admin_reaches_only_keys_of_its_project(deps, admin):
    """It cannot create or revoke a key with more rights than its own."""
    theirs = await made(admin, project="other")
    root = await made(admin, role="operator")
    mine = await made(admin, role="admin")
    written = len(deps.log.records)
    async with client_of(deps, mine["secret"]) as client:
        needs_more = [
            ("POST", "/v1/admin/keys", {"json": MADE | {"project": "other"}}),
            ("POST", "/v1/admin/keys", {"json": MADE | {"role": "operator"}}),
            ("GET", "/v1/admin/keys", {"params": {"project": "other"}}),
            ("DELETE", f"/v1/admin/keys/{root['id']}", {}),
            ("GET", "/v1/usage", {"params": {"project": "other"}}),
            ("GET", "/v1/usage", {"params": {"project": "*"}}),
        ]
        for method, path, more in needs_more:
            answer = await client.request(method, path, **more)
            assert fault(answer) == (403, None, "insufficient_permissions"), (method, path, more)
            assert "'operator'" in answer.json()["error"]["message"]
        for method in ("GET", "DELETE"):
            for key_id in (theirs["id"], "key_none", "key_settings"):
                answer = await client.request(method, f"/v1/admin/keys/{key_id}")
                assert fault(answer) == (404, None, None)
        page = (await client.get("/v1/admin/keys")).json()
        assert {key["id"] for key in page["data"]} == {root["id"], mine["id"]}
        answer = await client.get("/v1/admin/keys", params={"after": theirs["id"]})
        assert fault(answer) == (400, "after", "invalid_value")
        assert len(deps.log.records) == written
        for role in ("read", "write", "admin"):
            key = (await client.post("/v1/admin/keys", json={"name": "x", "role": role})).json()
            assert (key["project"], key["role"]) == ("team", role)
            assert (await client.delete(f"/v1/admin/keys/{key['id']}")).status_code == 200


async def test_a_token_is_for_one_stream(deps, admin):
    """It is signed for the caller's project and expires."""
    key = await made(admin)
    async with client_of(deps, key["secret"]) as client:
        body = {"stream": "crawl", "expires_in_seconds": 60}
        answer = (await client.post("/v1/intake/tokens", json=body)).json()
        token = answer.pop("token")
        assert answer == {
            "object": "producer_token", "stream": "crawl", "project": "team", "key": key["id"],
            "created_at": NOW, "expires_at": NOW + 60,
        }  # fmt: skip
        claims = producer_token.claims(VERIFIER, token)
        assert (claims.sub, claims.project, claims.key) == ("crawl", "team", key["id"])
        for wrong, param in (
            ({}, "stream"),
            ({"stream": ""}, "stream"),
            ({"stream": "x" * 256}, "stream"),
            ({"stream": "a\nb"}, "stream"),
            ({"stream": "a", "expires_in_seconds": 86_401}, "expires_in_seconds"),
            ({"stream": "a", "expires_in_seconds": True}, "expires_in_seconds"),
            ({"stream": "a", "project": "other"}, "project"),
        ):
            answer = await client.post("/v1/intake/tokens", json=wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), wrong
    async with client_of(deps, token) as holder:
        assert (await holder.get("/v1/files")).status_code == 401


async def test_a_token_expires_with_its_key(deps, admin):
    """A key that expires in five minutes makes no token for a day."""
    key = await made(admin, expires_in_seconds=300)
    async with client_of(deps, key["secret"]) as client:
        for wanted, given in ((86_400, 300), (60, 60)):
            answer = await client.post("/v1/intake/tokens", json={"stream": "s", "expires_in_seconds": wanted})
            assert answer.json()["expires_at"] == NOW + given
            assert producer_token.claims(VERIFIER, answer.json()["token"]).exp == NOW + given


IDS = dict.fromkeys(
    ("batch_id", "file_id", "key_id", "upload_id", "endpoint_id", "delivery_id", "model", "name", "letter"), "x"
) | {"endpoint_path": "embeddings"}
OF_OPERATORS = tuple(f"/v1/admin/{name}" for name in ("servers", "models", "apply", "settings", "dead_letters"))


async def test_roles(deps, admin):
    """On every route: readers change nothing, and only admins and operators use the routes of theirs."""
    clients = {role: client_of(deps, (await made(admin, role=role))["secret"]) for role in access.Role}
    found = operations(deps)
    assert len(found) > 20
    for method, path in found:
        needed = access.Role.READ if method == "GET" or path.endswith("/estimate") else access.Role.WRITE
        if "/admin/" in path:
            needed = access.Role.OPERATOR if path.startswith(OF_OPERATORS) else access.Role.ADMIN
        for role, client in clients.items():
            if role.covers(needed):
                continue
            # The body of a rerun or a replay says whether it changes something.
            body = {"source": {"model": "m", "from": "0"}} if path.endswith("/replays") else {}
            answer = await client.request(method, path.format(**IDS), json=body)
            assert answer.status_code == 403, (method, path, role)
            assert f"'{needed}'" in answer.json()["error"]["message"]
    for method, path in found:
        async with client_of(deps, "") as stranger:
            assert (await stranger.request(method, path)).status_code == 401, (method, path)
    for client in clients.values():
        await client.aclose()
