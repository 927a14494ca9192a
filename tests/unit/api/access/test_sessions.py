"""Sessions of the dashboard: the cookie stands for a key, only for pages of this origin, and ends with the key."""

import asyncio
import base64
from dataclasses import replace

import httpx
import orjson
import pytest
from support.dependencies import ADMIN, NOW, READER, client_of
from support.trust import SIGNER, VERIFIER

from tidemill.api.access.sessions import (
    COOKIE,
    HEADER,
    IDLE_SECONDS,
    LIFE_SECONDS,
    RENEW_SECONDS,
    SECURE_COOKIE,
    Sessions,
)
from tidemill.api.access.trail import REFUSALS_MAX
from tidemill.api.app import create_app
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.signing import PRODUCER, SESSION, Signer
from tidemill.schemas.resources.audit import Action

LOCAL = "http://127.0.0.1:8080"
PUBLIC = "https://mill.example"
SESSION_PATH = "/dashboard/session"
FILE = {"data": {"purpose": "batch"}, "files": {"file": ("f", b"{}\n")}}


def browser(deps, base: str = LOCAL, *, cookies: httpx.Cookies | None = None) -> httpx.AsyncClient:
    """A page of the dashboard: its requests have the headers that a browser and the page's script add."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(deps)), base_url=base, cookies=cookies,
        headers={"sec-fetch-site": "same-origin", "origin": base, HEADER: "1"},
    )  # fmt: skip


async def signed_in(page: httpx.AsyncClient, key: str = "key-of-p") -> httpx.Response:
    """The answer to a sign-in that worked."""
    answer = await page.post(SESSION_PATH, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer


def attributes(answer: httpx.Response) -> tuple[str, set[str]]:
    """The name of the cookie that an answer sets, and its attributes."""
    (pair, *rest) = answer.headers["set-cookie"].split("; ")
    return pair.partition("=")[0], {each for each in rest if not each.startswith("Max-Age")}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_session_stands_for_its_key(deps):
    """With its project and role; the key is in no answer, and another process accepts the cookie."""
    async with browser(deps) as page:
        shown = (await signed_in(page)).json()
        assert shown == (await page.get(SESSION_PATH)).json()
        assert (shown["project"], shown["role"], shown["projects"]) == ("p", "write", ["p"])
        assert (shown["created_at"], shown["expires_at"]) == (NOW, NOW + LIFE_SECONDS)
        assert (await page.post("/v1/files", **FILE)).status_code == 200
        other = replace(deps, access=replace(deps.access, sessions=of_another_process(deps)))
        async with browser(other, cookies=page.cookies) as elsewhere:
            assert len((await elsewhere.get("/v1/files")).json()["data"]) == 1
        await signed_in(page, READER)
        assert code(await page.post("/v1/files", **FILE)) == (403, "insufficient_permissions")
        operator = (await signed_in(page, ADMIN)).json()
        assert operator["projects"] == ["default"]
    assert "key-of-p" not in base64.urlsafe_b64decode(page.cookies[COOKIE].split(".")[1] + "==").decode()


def of_another_process(deps) -> Sessions:
    return Sessions(deps.access.keys, SIGNER, VERIFIER, deps.view.audit.has_ended, deps.clock)


@pytest.mark.parametrize(
    ("base", "name", "more"),
    [(LOCAL, COOKIE, set()), (PUBLIC, SECURE_COOKIE, {"Secure"}), ("http://mill", SECURE_COOKIE, {"Secure"})],
)
async def test_scripts_and_other_sites_do_not_get_the_cookie(deps, base, name, more):
    """Over TLS, also that of a proxy, it is bound to the host."""
    async with browser(deps, base) as page:
        page.headers["origin"] = PUBLIC if more else LOCAL
        answer = await signed_in(page)
        assert attributes(answer) == (name, {"Path=/", "HttpOnly", "SameSite=Strict"} | more)
        assert answer.headers["cache-control"] == "no-store"


FORGED = {
    "a form of another site": {"sec-fetch-site": "cross-site", HEADER: None},
    "a script of another site": {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    "another port of the machine": {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9999"},
    "another port, without fetch metadata": {"sec-fetch-site": None, "origin": "http://127.0.0.1:9999"},
    "a sandboxed page": {"sec-fetch-site": None, "origin": "null"},
    "no header of the page's script": {HEADER: None},
    "no origin": {"sec-fetch-site": None, "origin": None},
    "an address that the user opens": {"sec-fetch-site": "none", "origin": None},
}


@pytest.mark.parametrize("name", FORGED)
async def test_requests_of_other_pages_change_nothing(deps, name):
    """Neither with a session, nor to begin one."""
    async with browser(deps) as page:
        await signed_in(page)
        headers = httpx.Headers(dict(page.headers))
        for field, value in FORGED[name].items():
            headers.pop(field, None)
            if value is not None:
                headers[field] = value
        page.headers = headers
        key = {"authorization": "Bearer key-of-q"}
        for answer in (
            await page.post("/v1/files", **FILE),
            await page.delete(SESSION_PATH),
            await page.post(SESSION_PATH, headers=key),
        ):
            assert code(answer) == (403, "cross_origin_refused")
            assert "set-cookie" not in answer.headers
        may_read = headers.get("sec-fetch-site") in {None, "same-origin", "none"} and (
            "sec-fetch-site" in headers or headers.get("origin") in {None, LOCAL}
        )
        assert (await page.get("/v1/files")).status_code == (200 if may_read else 403)
        page.cookies.clear()
        keyed = await page.post("/v1/files", **FILE, headers={"authorization": "Bearer key-of-p"})
        assert keyed.status_code == 200, "a key needs no such rule"


async def test_a_planted_session_does_not_count(deps):
    """A sign-in begins a new session, and over TLS only the cookie counts that other subdomains cannot set."""
    async with browser(deps) as page:
        planted = (await signed_in(page, "key-of-q")).json()["id"]
        text = page.cookies[COOKIE]
        assert (await signed_in(page)).json()["id"] != planted
    async with browser(deps, PUBLIC, cookies=httpx.Cookies({COOKIE: text})) as page:
        assert (await page.get("/v1/files")).status_code == 401
        await signed_in(page)
        assert (await page.get(SESSION_PATH)).json()["project"] == "p"


def forged(claims: dict) -> dict[str, str]:
    """Cookies that this service did not make."""
    head, payload, signature = SIGNER.sign(SESSION, orjson.dumps(claims)).decode().split(".")
    raised = base64.urlsafe_b64encode(orjson.dumps(claims | {"key": "key_settings"})).decode().rstrip("=")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    return {
        "another payload": f"{head}.{raised}.{signature}",
        "no algorithm": f"{unsigned}.{payload}.",
        "another signer": Signer.made().sign(SESSION, orjson.dumps(claims)).decode(),
        "another kind of text": SIGNER.sign(PRODUCER, orjson.dumps(claims)).decode(),
        "another audience": SIGNER.sign(SESSION, orjson.dumps(claims | {"aud": "other"})).decode(),
        "no text of ours": "x",
        "a long text": "x" * 20_000,
        "nothing": "",
    }


async def test_forged_cookies_are_refused_keys(deps):
    """Each is a 401 and a record of the trail; after some the address has to wait."""
    claims = deps.access.sessions.begin(deps.access.keys.principal("key-of-p", is_whole=True)).model_dump()
    for text in forged(claims).values():
        async with browser(deps, cookies=httpx.Cookies({COOKIE: text})) as page:
            assert code(await page.get("/v1/files")) == (401, "invalid_session")
    async with browser(deps) as page:
        wrong = {"authorization": "Bearer sk-wrong"}
        answers = [await page.post(SESSION_PATH, headers=wrong) for _ in range(REFUSALS_MAX)]
        assert [answer.status_code for answer in answers][:2] == [401, 401]
        assert answers[-1].status_code == 429
        await signed_in(page)
    await asyncio.gather(*deps.trail._pending)
    actions = [codec.decode_audit(value).action for value in deps.log.trail]
    assert actions.count(Action.KEY_REFUSE) == REFUSALS_MAX
    assert actions.count(Action.SESSION_CREATE) == 1


async def test_a_session_ends_with_its_key(deps):
    """Revoked, expired, or replaced in the settings."""
    async with client_of(deps, ADMIN, base=LOCAL) as admin, browser(deps) as page:
        made = (await admin.post("/v1/admin/keys", json={"name": "n", "expires_in_seconds": 60})).json()
        assert (await signed_in(page, made["secret"])).json()["expires_at"] == NOW + 60
        assert (await page.get("/v1/files")).status_code == 200
        await admin.delete(f"/v1/admin/keys/{made['id']}")
        assert code(await page.get("/v1/files")) == (401, "invalid_api_key")
        await signed_in(page, ADMIN)
        digest, fixed = next(each for each in deps.access.keys._fixed.items() if each[1].project == "default")
        deps.access.keys._fixed = {"0" * 64: replace(fixed, digest="0" * 64)}
        assert digest != "0" * 64
        assert code(await page.get("/v1/files")) == (401, "session_ended")


async def test_a_session_ends_when_it_is_idle_or_old(deps, clock):
    """Requests extend it, with a new cookie, up to its longest life."""
    async with browser(deps) as page:
        await signed_in(page)
        clock.now = NOW + RENEW_SECONDS - 1
        assert "set-cookie" not in (await page.get("/v1/files")).headers
        clock.now, ends = NOW, NOW + LIFE_SECONDS
        while clock.now + IDLE_SECONDS - 1 < ends:
            clock.now += IDLE_SECONDS - 1
            assert "set-cookie" in (await page.get("/v1/files")).headers
        text = page.cookies[COOKIE]
        clock.now = ends
        page.cookies.set(COOKIE, text)
        assert code(await page.get("/v1/files")) == (401, "session_ended")
        page.cookies.clear()
        await signed_in(page)
        text = page.cookies[COOKIE]
        clock.now += IDLE_SECONDS
        page.cookies.clear()
        page.cookies.set(COOKIE, text)
        assert code(await page.get("/v1/files")) == (401, "session_ended")


async def test_a_sign_out_outlasts_a_clock_that_was_ahead(deps, clock):
    """Someone else signs out meanwhile, which drops old marks."""
    ended = deps.view.audit
    ended.end_session("session_a", int(deps.clock()))
    clock.now += 60 * 86_400
    ended.end_session("session_b", int(clock()))
    clock.now -= 60 * 86_400
    assert ended.has_ended("session_a")


async def test_a_sign_out_ends_the_session_everywhere(deps):
    """Its record in the log tells the other processes; the browser forgets the cookie even without a log."""
    async with browser(deps) as page:
        session = (await signed_in(page)).json()["id"]
        text = page.cookies[COOKIE]
        deps.log.away = True
        assert (await page.delete(SESSION_PATH)).status_code == 503
        assert not page.cookies
        deps.log.away = False
        page.cookies.set(COOKIE, text)
        assert (await page.delete(SESSION_PATH)).json()["deleted"]
        page.cookies.set(COOKIE, text)
        assert code(await page.get("/v1/files")) == (401, "session_ended")
        deps.view._database.write("DELETE FROM sessions_ended")
        assert (await page.get("/v1/files")).status_code == 200
        records = [("", value, place) for place, value in enumerate(deps.log.trail)]
        deps.view.fold(topics.AUDIT.name, records)
        assert code(await page.get("/v1/files")) == (401, "session_ended")
    ended = [codec.decode_audit(value) for value in deps.log.trail]
    assert [record.target for record in ended if record.action == Action.SESSION_END] == [session]
