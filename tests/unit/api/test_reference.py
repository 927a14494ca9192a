"""The pages of docs/reference/api name each route and audited action, and a key may read what they promise."""

import re
from pathlib import Path

import pytest
from support.dependencies import ADMIN, client_of

from tidemill.api.app import create_app
from tidemill.api.openapi import describe
from tidemill.schemas.resources.audit import Action

PAGES = Path(__file__).parents[3] / "docs" / "reference" / "api"
OTHER_PAGES = ("/dashboard", "/livez", "/readyz")
"""Their pages are docs/reference/dashboard.md and health.md."""
PARAMETER = re.compile(r"\{[a-z_]+\}")


@pytest.fixture
def paths(deps):
    """The paths of the OpenAPI document that these pages describe."""
    return {
        path: operations
        for path, operations in describe(create_app(deps))["paths"].items()
        if not path.startswith(OTHER_PAGES)
    }


def test_each_route_is_on_a_page(paths):
    """With its whole path, whatever the page calls the ids in it."""
    text = "\n".join(page.read_text("utf-8") for page in sorted(PAGES.glob("*.md")))
    named = {PARAMETER.sub("{}", path) for path in re.findall(r"/v1/[A-Za-z0-9_{}/-]+|/openapi\.json", text)}
    assert len(paths) > 40
    assert [path for path in paths if PARAMETER.sub("{}", path) not in named] == []


def test_each_action_is_on_the_page_of_the_audit_trail():
    """As the text that a record has."""
    page = (PAGES / "audit.md").read_text("utf-8")
    assert [action for action in Action if f"`{action}`" not in page] == []


async def test_a_key_of_a_reader_gets_what_its_role_promises(deps, paths):
    """Every GET outside `/v1/admin`, and none inside it; what an event stream asks for may need more."""
    assert "| `read` | every `GET` outside `/v1/admin`" in (PAGES / "keys.md").read_text("utf-8")
    async with client_of(deps, ADMIN, base="http://api") as admin:
        body = {"name": "r", "project": "p", "role": "read"}
        secret = (await admin.post("/v1/admin/keys", json=body)).json()["secret"]
    found = {}
    async with client_of(deps, secret, base="http://api") as reader:
        for path, operations in paths.items():
            if "get" in operations and "text/event-stream" not in operations["get"]["responses"]["200"]["content"]:
                found[path] = (await reader.get(PARAMETER.sub("x", path))).status_code
    assert len(found) > 20
    assert {path for path, status in found.items() if status == 403} == {
        path for path in found if path.startswith("/v1/admin/")
    }
