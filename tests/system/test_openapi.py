"""The OpenAPI document is true: requests generated from it get no 500, and only documented answers."""

import asyncio
from unittest import SkipTest

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from support.api import KEY, Api
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore::Warning:schemathesis.*")]

EXAMPLES = 25
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
OPERATIONS_MIN = 20
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def api(kafka, tmp_path_factory):
    """An api process with one model."""
    asyncio.run(ensure_topics(Settings(), kafka))
    models = {"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}
    with Api(tmp_path_factory.mktemp("openapi"), kafka, models=models) as api:
        yield api


@pytest.fixture(scope="module")
def described(api):
    """The description as it is served."""
    return schemathesis.openapi.from_url(f"{api.root}/openapi.json")


def test_the_document_describes_every_route(api):
    """Its text, its answers, and whether it needs a key; the document needs none."""
    described = httpx.get(f"{api.root}/openapi.json", timeout=WAIT_SECONDS_MAX).raise_for_status().json()
    operations = [each for path in described["paths"].values() for each in path.values()]
    assert len(operations) >= OPERATIONS_MIN
    for each in operations:
        assert each["summary"]
        assert {"200", "500"} <= set(each["responses"])
        assert "422" not in each["responses"]
    assert "$defs" not in str(described)
    assert httpx.get(f"{api.root}/docs", timeout=WAIT_SECONDS_MAX).status_code == 404


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_answers_match_the_document(described, mode):
    """For requests that follow the document or break it, from a fixed seed."""
    checks = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
    # A stream has no end to wait for.
    operations = [one for found in described.get_all_operations() if (one := found.ok()).path != "/v1/events"]
    assert len(operations) >= OPERATIONS_MIN
    with requests.Session() as session:
        for operation in operations:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def ask(case: schemathesis.Case) -> None:
                case.call_and_validate(session=session, headers=HEADERS, checks=checks, timeout=WAIT_SECONDS_MAX)

            try:
                ask()
            except (Unsatisfiable, SkipTest):
                # A route without parameters cannot be asked for wrongly.
                assert mode is GenerationMode.NEGATIVE, operation.label
