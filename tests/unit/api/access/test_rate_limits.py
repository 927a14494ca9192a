"""The rate limit of keys: a bucket for each, whose state every answer has."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import pytest_asyncio
from fastapi import Request
from support.dependencies import ManualClock, client_of, open_dependencies

from tidemill.api.access.rate_limits import COSTS, HEAVY, KEYS_MAX, MANY, READ, Rates, cost
from tidemill.api.app import create_app
from tidemill.api.batches.result_search import ResultsQuery
from tidemill.api.openapi import describe
from tidemill.api.requests.filters import BatchesQuery
from tidemill.configuration.projects import Limits
from tidemill.configuration.settings import Settings

LEFT = "x-ratelimit-remaining-requests"
SETTINGS = Settings(
    limits={"requests_per_second": 10, "requests_burst": 40},
    projects={"q": {"limits": {"requests_per_second": 1_000, "requests_burst": 1_000}}},
)


READING = [
    *(
        ("/v1/batches/{batch_id}/results", name)
        for name in ResultsQuery.model_fields
        if ResultsQuery.model_construct(**{name: ""}).reads_lines
    ),
    *(
        ("/v1/batches", name)
        for name in BatchesQuery.model_fields
        if BatchesQuery.model_construct(**{name: ""}).scan()
    ),
]
"""The parameters that make a list read what it does not show, by the route."""


@pytest.fixture
def time():
    """The clock of the buckets."""
    return ManualClock(100.0)


@pytest_asyncio.fixture
async def deps(tmp_path, time):
    """Dependencies with a small limit for `p` and another one for `q`."""
    async with open_dependencies(tmp_path, settings=SETTINGS) as deps:
        yield replace(deps, access=replace(deps.access, rates=Rates(time)))


@pytest_asyncio.fixture
async def client(deps):
    """A client without a key."""
    async with client_of(deps, None) as client:
        yield client


def of(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_key_above_its_rate(client, time):
    """It gets the time to wait, and succeeds after it; other keys and health checks are not affected."""
    for left in range(39, -1, -1):
        answer = await client.get("/models", headers=of("key-of-p"))
        assert (answer.status_code, answer.headers[LEFT]) == (200, str(left))
        assert answer.headers["x-ratelimit-limit-requests"] == "40"
    assert answer.headers["x-ratelimit-reset-requests"] == "4.000s"
    refused = await client.get("/models", headers=of("key-of-p"))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "101")
    assert "x-should-retry" not in refused.headers
    assert refused.headers[LEFT] == "0"
    assert refused.headers["x-request-id"].startswith("req_")
    for key in ("key-of-q", "key-of-admin"):
        assert (await client.get("/models", headers=of(key))).status_code == 200
    assert (await client.get("http://api/livez")).status_code == 200
    time.now += 0.101
    assert (await client.get("/models", headers=of("key-of-p"))).status_code == 200
    assert (await client.get("/models", headers=of("key-of-p"))).status_code == 429


async def test_requests_cost_by_their_route(deps, client):
    """Also if they are refused for another reason."""
    headers, left = of("key-of-q"), 1_000
    for method, path, taken in (
        ("GET", "/batches/batch_x", READ), ("GET", "/batches", MANY), ("POST", "/batches", MANY),
        ("DELETE", "/files/file-x", MANY), ("POST", "/batches/batch_x/rerun", HEAVY), ("POST", "/replays", HEAVY),
        ("POST", "/admin/keys", MANY), ("GET", "/files/file-x/content", MANY),
        ("GET", "/webhook_endpoints/we_x/deliveries", MANY),
    ):  # fmt: skip
        answer = await client.request(method, path, headers=headers)
        left -= taken
        assert (answer.status_code >= 400) == (path != "/batches" or method == "POST")
        assert answer.headers[LEFT] == str(left), (method, path)
    described = describe(create_app(deps))["paths"]
    assert COSTS.keys() <= {(method.upper(), path) for path, found in described.items() for method in found}


@pytest.mark.parametrize(("path", "name"), READING)
@pytest.mark.parametrize("value", ["", "x"])
def test_a_search_costs_what_it_reads(path, name, value):
    """By whatever parameter, also by an empty text; a list without one costs less."""

    def taken(query: str) -> int:
        route = SimpleNamespace(path_format=path)
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": query.encode()}
        return cost(Request(scope | {"route": route}))

    assert taken(f"limit=1&{name}={value}") == taken(name) == HEAVY
    assert taken("limit=1") == MANY


async def test_an_unknown_key_has_no_bucket(deps, client):
    """Unknown keys would evict known ones."""
    for key in ("", "sk-wrong-key-0123456789"):
        assert (await client.get("/models", headers=of(key))).status_code == 401
    assert not deps.access.rates._buckets


def test_buckets_are_bounded():
    """The least recently used one is dropped."""
    found, limits = Rates(lambda: 0.0), Limits(requests_burst=100)
    for number in range(KEYS_MAX + 10):
        found.take(f"k{number}", 100, limits)
        found.take("always", 1, limits)
    assert len(found._buckets) == KEYS_MAX
    assert {"always", f"k{KEYS_MAX + 9}"} <= found._buckets.keys()
    assert "k0" not in found._buckets


def test_the_default_rate_allows_normal_use():
    """Polling 900 batches once a second, and uploading 2,000 files at once."""
    time, limits = ManualClock(100.0), Settings().limits
    found = Rates(time)
    for _ in range(2_000):
        assert found.take("k", MANY, limits)[1] == 0
    time.now += 10
    for _ in range(60):
        for _ in range(900):
            assert found.take("k", READ, limits)[1] == 0
        time.now += 1
    with pytest.raises(ValueError, match="requests_burst"):
        # A bucket smaller than the cost of a request would refuse it for good.
        Limits(requests_burst=HEAVY - 1)
