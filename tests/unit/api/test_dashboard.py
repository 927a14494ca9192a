"""The files of the dashboard, and the policy that keeps foreign code out."""

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
    """A client without a key."""
    async with open_dependencies(tmp_path) as deps:
        transport = httpx.ASGITransport(create_app(deps))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            yield client


@pytest.mark.parametrize("path", ["/", "/dashboard"])
async def test_the_root_redirects_to_the_dashboard(client, path):
    """So does its path without the slash."""
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, "/dashboard/")


@pytest.mark.parametrize("name", ["", *NAMES])
async def test_files_have_a_content_security_policy(client, name):
    """It forbids other origins and inline code; a cached file gets a 304."""
    answer = await client.get(f"/dashboard/{name}")
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = await client.get(f"/dashboard/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_other_files_are_not_served(client):
    """Least of all files of the machine."""
    for name in ("nothing.js", "..%2Fapp.py", "%2Fetc%2Fpasswd"):
        assert (await client.get(f"/dashboard/{name}")).status_code == 404


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_insert_text_not_html(name):
    """Each imported module exists."""
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(SCRIPTS)
