"""The credentials that a caller makes: keys, tokens of producers, and sessions."""

import asyncio

import httpx
import pytest
from support.dependencies import ADMIN, NOW, client_of, open_dependencies

from tidemill.api.access.people import Person
from tidemill.api.access.sessions import COOKIE, HEADER
from tidemill.configuration.settings import Settings
from tidemill.schemas.log.signing import SESSION

BASE = "http://127.0.0.1:8080"
KEYS, TOKENS, SIGN_IN = "/v1/admin/keys", "/v1/intake/tokens", "/dashboard/session"
GRANT = {"value": "admins", "project": "p", "role": "admin"}
SETTINGS = Settings(openid={"issuer": "https://provider.example", "client_id": "c", "grants": [GRANT]})


def page_of(deps) -> httpx.AsyncClient:
    """A page of the dashboard."""
    headers = {"sec-fetch-site": "same-origin", "origin": BASE, HEADER: "1"}
    return client_of(deps, None, base=BASE, **headers)


async def minted(client: httpx.AsyncClient, wanted: int | None) -> list[dict]:
    """All that a client can make, each for this long if it can choose."""
    life = {} if wanted is None else {"expires_in_seconds": wanted}
    calls = [
        client.post(KEYS, json={"name": "n", "role": "admin"} | life),
        client.post(TOKENS, json={"stream": "s"} | life),
    ]
    found = await asyncio.gather(*calls)
    assert [answer.status_code for answer in found] == [200] * len(calls)
    return [answer.json() for answer in found]


@pytest.mark.parametrize("wanted", [None, 60, 86_400])
@pytest.mark.parametrize("life", [60, 3_600, 86_400])
async def test_no_credential_outlives_the_key_that_made_it(deps, life, wanted):
    """Neither those of the key, nor of its session, nor of the keys that it made."""
    async with client_of(deps, ADMIN, base=BASE) as operator, page_of(deps) as page:
        body = {"name": "n", "role": "admin", "project": "p", "expires_in_seconds": life}
        key = (await operator.post(KEYS, json=body)).json()
        async with client_of(deps, key["secret"], base=BASE) as client:
            made = await minted(client, wanted)
        session = await page.post(SIGN_IN, headers={"authorization": f"Bearer {key['secret']}"})
        made += [session.json(), *await minted(page, wanted)]
        async with client_of(deps, made[0]["secret"], base=BASE) as child:
            made += await minted(child, wanted)
    assert len(made) == 7
    assert {each["expires_at"] <= NOW + life for each in made} == {True}, made
    assert {each["expires_at"] for each in made if each["object"] == "key"} == {NOW + min(life, wanted or life)}
    makers = [each["created_by"] for each in made if each["object"] == "key"]
    assert makers == [key["id"], key["id"], made[0]["id"]]


async def test_a_key_that_does_not_expire_makes_such_keys(deps):
    """As that of the settings does."""
    async with client_of(deps, ADMIN, base=BASE) as operator:
        body = {"name": "n", "role": "admin", "project": "p"}
        key = (await operator.post(KEYS, json=body)).json()
        async with client_of(deps, key["secret"], base=BASE) as client:
            assert [one["expires_at"] for one in (key, (await minted(client, None))[0])] == [None, None]


async def test_a_key_of_a_person_names_them(tmp_path):
    """It outlives their session, so an admin must find it."""
    async with open_dependencies(tmp_path, settings=SETTINGS) as deps, page_of(deps) as page:
        sessions = deps.access.sessions
        person = Person(sub="1", email="ada@example.com", grants=[0])
        claims = sessions.begin(deps.access.people.caller(person, since=NOW), person)
        page.cookies.set(COOKIE, deps.signer.sign(SESSION, claims.model_dump_json().encode()).decode())
        key = (await page.post(KEYS, json={"name": "n"})).json()
        assert (key["created_by"], key["expires_at"]) == ("ada@example.com", None)
        assert (await page.get(f"{KEYS}/{key['id']}")).json()["created_by"] == "ada@example.com"
