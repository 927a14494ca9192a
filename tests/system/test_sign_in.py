"""Sign-in with OpenID Connect, against a real provider: what it grants, and each way in which it may go wrong."""

import asyncio
import html
import re
import time
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from support.dependencies import ADMIN, open_dependencies
from support.openid import GRANTS, SECRET, attack, openid_provider
from support.ports import free_port
from support.waiting import WAIT_SECONDS_MAX

from tidemill.api.access import provider
from tidemill.api.access.sessions import COOKIE, HEADER
from tidemill.api.access.trail import REFUSALS_MAX
from tidemill.api.app import create_app
from tidemill.api.routes.dashboard import sign_in
from tidemill.configuration.projects import OpenId
from tidemill.configuration.settings import Settings
from tidemill.schemas.log import codec
from tidemill.schemas.resources.audit import Action

API = "http://127.0.0.1:8080"
CALLBACK = API + sign_in.CALLBACK
SESSION = "/dashboard/session"
FILE = {"data": {"purpose": "batch"}, "files": {"file": ("f", b"{}\n")}}
STEPS_MAX = 20


@pytest.fixture(scope="module")
def issuer():
    """A provider for all tests of this file."""
    with openid_provider(free_port(), CALLBACK) as issuer:
        yield issuer


class Clock:
    """The time, moved by `by` seconds: tokens of the provider have the real one."""

    def __init__(self):
        self.by = 0

    def __call__(self):
        return time.time() + self.by


@pytest.fixture
def clock():
    return Clock()


@asynccontextmanager
async def installation(folder, issuer, clock, **options):
    """Dependencies of an api with the provider."""
    secret = folder / "client_secret"
    secret.write_text(f"{SECRET}\n", "utf-8")
    found = {"issuer": issuer, "client_id": "tidemill", "client_secret_file": secret, "grants": GRANTS, **options}
    async with open_dependencies(folder, clock, Settings(openid=OpenId(**found))) as deps:
        yield deps


@pytest.fixture
async def deps(tmp_path, issuer, clock):
    async with installation(tmp_path, issuer, clock) as deps:
        yield deps


def browser(deps) -> httpx.AsyncClient:
    """A browser that reaches the api and the provider."""
    transport = httpx.ASGITransport(create_app(deps))
    return httpx.AsyncClient(
        base_url=API,
        mounts={API: transport},
        headers={"origin": API, HEADER: "1"},
        timeout=WAIT_SECONDS_MAX,
        trust_env=False,
    )


@pytest.fixture
async def page(deps):
    async with browser(deps) as page:
        yield page


async def way_back(page, person, to="/", **query) -> str:
    """Sign in at the provider as a person; the address with which the provider sends the browser back."""
    answer = await page.get("/dashboard/sign-in/openid", params={"to": to, **query})
    for _ in range(STEPS_MAX):
        if (target := answer.headers.get("location")) is not None:
            address = str(answer.url.join(target))
            if address.startswith((CALLBACK, f"{API}/dashboard/?")):
                return address
            answer = await page.get(address)
            continue
        (action,) = re.findall(r'<form[^>]* action="([^"]+)"', answer.text)
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)"', answer.text))
        answer = await page.post(html.unescape(action), data={**fields, "login": person, "password": "any"})
    raise AssertionError("the provider sends the browser in circles")


async def signed_in(page, person, to="/", **query) -> httpx.Response:
    """The last answer of a sign-in."""
    return await page.get(await way_back(page, person, to, **query))


def refusal(answer) -> str:
    """Why the dashboard says that a sign-in was refused, and that the browser has no session."""
    assert answer.status_code == 303
    assert f"{COOKIE}=" not in str(answer.headers.get_list("set-cookie"))
    target = urlsplit(answer.headers["location"])
    assert (target.scheme, target.netloc, target.path) == ("", "", "/dashboard/")
    (reason,) = parse_qs(target.query)["refused"]
    return reason


async def trail(deps) -> list:
    """All records of the audit trail."""
    await asyncio.gather(*deps.trail._pending)
    return [codec.decode_audit(value) for value in deps.log.trail]


async def test_a_person_has_the_roles_of_the_groups(deps, page):
    """In the first project, and after a switch in another; the audit trail names the person."""
    assert (await signed_in(page, "ada", "/batches?status=failed")).headers["location"] == (
        "/dashboard/#/batches?status=failed"
    )
    shown = (await page.get(SESSION)).json()
    assert (shown["person"], shown["key"]) == ("ada@example.com", None)
    assert (shown["project"], shown["role"], shown["projects"]) == ("research", "write", ["default", "research"])
    made = await page.post("/v1/files", **FILE)
    assert made.status_code == 200, made.text
    assert (await page.post("/v1/intake/tokens", json={"stream": "s"})).json()["error"]["code"] == "key_needed"
    switched = (await page.post(f"{SESSION}/project", json={"project": "default"})).json()
    assert (switched["project"], switched["role"]) == ("default", "read")
    assert (await page.get("/v1/files")).json()["data"] == []
    assert (await page.post("/v1/files", **FILE)).status_code == 403
    assert (await page.post(f"{SESSION}/project", json={"project": "other"})).status_code == 403
    assert (await page.get(SESSION)).json()["project"] == "default"
    await page.post(f"{SESSION}/project", json={"project": "research"})
    assert (await page.delete(f"/v1/files/{made.json()['id']}")).status_code == 200
    records = [(one.action, one.actor, one.project) for one in await trail(deps)]
    assert (Action.SESSION_CREATE, "ada@example.com", "research") in records
    assert (Action.SESSION_SWITCH, "ada@example.com", "default") in records
    assert (Action.FILE_DELETE, "ada@example.com", "research") in records


async def test_an_operator_sees_every_project(deps, page):
    """With a key as well as by a group; the role stays, and the switch is in the audit trail."""
    await signed_in(page, "olga")
    for begin in (None, {"authorization": f"Bearer {ADMIN}"}):
        if begin:
            page.cookies.clear()
            await page.post(SESSION, headers=begin)
        assert (await page.get(SESSION)).json()["project"] == "default"
        await page.post(f"{SESSION}/project", json={"project": "p"})
        assert (await page.get(SESSION)).json()["project"] == "p"
        async with browser(deps) as other:
            other.headers["authorization"] = "Bearer key-of-p"
            made = (await other.post("/v1/files", **FILE)).json()
        assert made["id"] in [one["id"] for one in (await page.get("/v1/files")).json()["data"]]
        assert (await page.get("/v1/admin/keys")).status_code == 200
    page.cookies.clear()
    await page.post(SESSION, headers={"authorization": "Bearer key-of-p"})
    assert (await page.post(f"{SESSION}/project", json={"project": "q"})).status_code == 403
    assert (await page.post(f"{SESSION}/project", json={"project": "p"})).status_code == 200


async def test_an_unverified_address_names_nobody(deps, page):
    """The provider's `sub` stands in the audit trail."""
    await signed_in(page, "bob")
    assert (await page.get(SESSION)).json()["person"] == "bob"
    assert (await trail(deps))[-1].actor == "bob"


async def test_only_a_verified_address_grants_a_role(tmp_path, issuer, clock):
    """Anyone may call himself by another's address at some providers."""
    grants = [{"value": f"{name}@example.com", "role": "operator"} for name in ("ada", "bob")]
    async with installation(tmp_path, issuer, clock, claim="email", grants=grants) as deps, browser(deps) as page:
        assert refusal(await signed_in(page, "bob")) == "no_access"
        page.cookies.clear()
        await signed_in(page, "ada")
        assert (await page.get(SESSION)).json()["role"] == "operator"


async def test_a_person_without_a_grant_is_refused(deps, page):
    """The audit trail says who."""
    assert refusal(await signed_in(page, "eve")) == "no_access"
    record = (await trail(deps))[-1]
    assert (record.action, record.detail["person"]) == (Action.SESSION_REFUSE, "eve@example.com")


FORGED = (
    "wrong nonce", "no nonce", "another client", "another party", "another issuer", "another token", "expired",
    "future", "long sub", "alg none", "public key as secret", "another key",
)  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_id_token_is_refused(deps, page, issuer, name):
    """And recorded; the next sign-in works."""
    attack(issuer, name)
    assert refusal(await signed_in(page, "ada")) == "invalid_answer"
    assert (await page.get(SESSION)).status_code == 401
    record = (await trail(deps))[-1]
    assert record.action == Action.SESSION_REFUSE
    assert "the ID token" in record.detail["reason"]
    assert (await signed_in(page, "ada")).headers["location"] == "/dashboard/#/"


async def test_a_sign_in_comes_back_to_the_project_of_the_address(page, issuer):
    """Also a refused one; a malformed project, or a malformed page, is left out."""
    for to, project, end in (
        ("/batches?status=failed", "default", "?project=default#/batches?status=failed"),
        ("//x", "a b", "#//x"),
        ("x", "default", "?project=default#/"),
    ):
        page.cookies.clear()
        answer = await signed_in(page, "ada", to, project=project)
        assert answer.headers["location"] == f"/dashboard/{end}"
    attack(issuer, "wrong nonce")
    page.cookies.clear()
    answer = await signed_in(page, "ada", "/files", project="default")
    assert refusal(answer) == "invalid_answer"
    target = urlsplit(answer.headers["location"])
    assert (parse_qs(target.query)["project"], target.fragment) == (["default"], "/files")


@pytest.mark.parametrize("name", ["unchanged", "within skew", "new keys"])
async def test_clocks_may_differ_and_keys_may_change(page, issuer, name):
    """Without a restart of the api."""
    await signed_in(page, "ada")
    attack(issuer, name)
    page.cookies.clear()
    assert (await signed_in(page, "ada")).headers["location"] == "/dashboard/#/"


@pytest.mark.parametrize("name", ["silent", "endless", "redirect"])
async def test_a_bad_provider_costs_bounded_time_and_memory(deps, page, issuer, monkeypatch, name):
    """An answer may come late, without end, or lead elsewhere."""
    back = await way_back(page, "ada")
    if name == "silent":
        monkeypatch.setattr(provider, "REQUEST_SECONDS_MAX", 0.2)
    attack(issuer, name)
    assert refusal(await page.get(back)) == "provider_unavailable"
    assert (await trail(deps))[-1].action == Action.SESSION_REFUSE


async def test_a_provider_that_is_down_is_named(tmp_path, clock):
    """Keys still sign in, and out."""
    async with installation(tmp_path, f"http://127.0.0.1:{free_port()}", clock) as deps, browser(deps) as page:
        assert refusal(await page.get("/dashboard/sign-in/openid")) == "provider_unavailable"
        await page.post(SESSION, headers={"authorization": f"Bearer {ADMIN}"})
        assert (await page.delete(SESSION)).json()["end_url"] is None


async def test_another_issuer_is_refused(tmp_path, issuer, clock):
    """The configuration must be that of the set issuer."""
    async with installation(tmp_path, f"{issuer}/", clock) as deps, browser(deps) as page:
        assert refusal(await page.get("/dashboard/sign-in/openid")) == "provider_unavailable"
        assert "not the set issuer" in (await trail(deps))[-1].detail["reason"]


async def test_a_way_back_works_once_and_in_its_browser_alone(deps, page, clock):
    """Neither again, nor elsewhere, nor with another state, nor too late."""
    back = await way_back(page, "ada")
    stolen = page.cookies[sign_in.COOKIE]
    async with browser(deps) as other:
        assert refusal(await other.get(back)) == "not_begun"
    assert refusal(await page.get(back.replace("state=", "state=x"))) == "not_begun"
    page.cookies.set(sign_in.COOKIE, stolen, domain="127.0.0.1", path="/")
    clock.by = sign_in.SECONDS_MAX
    assert refusal(await page.get(back)) == "not_begun"
    clock.by = 0
    page.cookies.set(sign_in.COOKIE, stolen, domain="127.0.0.1", path="/")
    assert (await page.get(back)).headers["location"] == "/dashboard/#/"
    assert refusal(await page.get(back)) == "not_begun"
    page.cookies.clear()
    page.cookies.set(sign_in.COOKIE, stolen, domain="127.0.0.1", path="/")
    assert refusal(await page.get(back)) == "invalid_answer", "the provider takes a code once"


async def test_an_answer_of_another_provider_is_refused(page):
    """RFC 9207; and one without a code, or with an error."""
    for change, reason in (
        (lambda back: re.sub(r"iss=[^&]*", "iss=https%3A%2F%2Fevil.example", back), "invalid_answer"),
        (lambda back: re.sub(r"[?&]iss=[^&]*", "", back), "invalid_answer"),
        (lambda back: re.sub(r"code=[^&]*", "code=", back), "invalid_answer"),
        (lambda back: re.sub(r"code=[^&]*", "error=access_denied", back), "denied"),
    ):
        assert refusal(await page.get(change(await way_back(page, "ada")))) == reason


@pytest.mark.parametrize(
    "to",
    ["https://evil.example", "//evil.example", "/\r\nset-cookie: a=b", "javascript:alert(1)"],
)
async def test_the_way_back_leads_to_the_dashboard(page, to):
    """Whatever place the address asks for."""
    target = urlsplit((await signed_in(page, "ada", to)).headers["location"])
    assert (target.scheme, target.netloc, target.path) == ("", "", "/dashboard/")
    assert "set-cookie" not in target.fragment


async def test_a_session_ends_with_the_setting_and_the_grants(deps, page, tmp_path, issuer, clock):
    """After `session_seconds`, and in a process with other grants."""
    await signed_in(page, "ada")
    shown = (await page.get(SESSION)).json()
    assert shown["expires_at"] - shown["created_at"] == deps.settings.openid.session_seconds
    (tmp_path / "other").mkdir()
    async with (
        installation(tmp_path / "other", issuer, clock, grants=GRANTS[:1]) as other,
        browser(other) as there,
    ):
        there.cookies = page.cookies
        assert (await there.get(SESSION)).json()["error"]["code"] == "session_ended"
    async with open_dependencies(tmp_path / "other", clock) as other, browser(other) as there:
        there.cookies = page.cookies
        assert (await there.get(SESSION)).json()["error"]["code"] == "session_ended"
    clock.by = deps.settings.openid.session_seconds
    assert (await page.get(SESSION)).status_code == 401


async def test_a_sign_out_goes_on_at_the_provider(deps, page):
    """Which comes back to the dashboard."""
    await signed_in(page, "ada")
    ended = (await page.delete(SESSION)).json()
    assert ended["end_url"].startswith(f"{deps.settings.openid.issuer}/session/end?client_id=tidemill&")
    assert (await page.get(SESSION)).status_code == 401
    answer = await page.get(ended["end_url"])
    assert answer.status_code == 200, answer.text


async def test_many_refused_sign_ins_have_to_wait(deps, page):
    """The trail has the first ones, like refused keys."""
    answers = [await page.get(sign_in.CALLBACK) for _ in range(REFUSALS_MAX + 2)]
    assert refusal(answers[0]) == "not_begun"
    assert refusal(answers[-1]) == "too_many"
    records = await trail(deps)
    assert len(records) == REFUSALS_MAX
