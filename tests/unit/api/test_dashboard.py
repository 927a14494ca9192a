"""The files of the dashboard: they are all there, and nothing from elsewhere can become part of the page."""

import re

import httpx
import pytest
from support.dependencies import open_dependencies

from tidemill.api.app import create_app
from tidemill.api.routes.dashboard import FOLDER

NAMES = sorted(path.name for path in FOLDER.iterdir())
SCRIPTS = [name for name in NAMES if name.endswith(".js")]


@pytest.fixture
async def client(tmp_path):
    """Somebody without a key."""
    async with open_dependencies(tmp_path) as deps:
        transport = httpx.ASGITransport(create_app(deps))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            yield client


@pytest.mark.parametrize("path", ["/", "/dashboard"])
async def test_whoever_types_in_the_address_lands_there(client, path):
    """There is one page."""
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, "/dashboard/")


@pytest.mark.parametrize("name", ["", *NAMES])
async def test_a_file_comes_with_a_policy(client, name):
    """Which lets in nothing from elsewhere and nothing inline; a copy that is known is not sent again."""
    answer = await client.get(f"/dashboard/{name}")
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = await client.get(f"/dashboard/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_there_is_no_other_file(client):
    """Least of all one of the machine's."""
    for name in ("nothing.js", "..%2Fapp.py", "%2Fetc%2Fpasswd"):
        assert (await client.get(f"/dashboard/{name}")).status_code == 404


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_makes_no_elements_of_text(name):
    """What users have sent is put in as text; each module that is imported is there."""
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(SCRIPTS)
