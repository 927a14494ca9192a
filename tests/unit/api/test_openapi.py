"""The OpenAPI document is true: of the requests that are accepted, and of the statuses that are answered."""

import asyncio
import re
from pathlib import Path

import jsonschema_rs
import orjson
import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import given
from hypothesis import strategies as st
from support import corpus
from support.dependencies import client_of, open_dependencies, with_settings

from tidemill.api.app import create_app
from tidemill.api.dependencies import JsonBody
from tidemill.api.openapi import Route, _parts, describe
from tidemill.api.requests import reading
from tidemill.api.requests.bodies import NewBatch
from tidemill.configuration.settings import Settings
from tidemill.schemas.resources.error import ApiError

ERRORS = Path(__file__).parents[3] / "docs" / "reference" / "api" / "errors.md"
MODELS = {"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}], "endpoints": ["/v1/messages"]}}
OF_NO_OPERATION = {405}
"""The path has no operation of the method."""
INPUTS = {
    "input_file_id": ["file-x", None], "requests": [[{"custom_id": "a", "body": {}}], None],
    "open": [True, False, None], "completion_window": ["24h", None], "endpoint": ["/v1/embeddings"],
    "metadata": [{"a": "b"}, None],
    "output_uri": ["s3://b/c", None], "output_format": ["parquet", None], "dedupe": ["none", None],
}  # fmt: skip


def fits(schema, value) -> bool:
    return jsonschema_rs.validator_for(schema).is_valid(value)


def is_accepted(model, fields, settings) -> bool:
    try:
        reading.body(model, orjson.dumps(fields), settings)
    except ApiError:
        return False
    return True


def schema_of_create(description):
    return description["paths"]["/v1/batches"]["post"]["requestBody"]["content"]["application/json"]["schema"]


@pytest.fixture
async def deps(tmp_path):
    async with open_dependencies(tmp_path, settings=Settings(models=MODELS)) as deps:
        yield deps


async def test_an_accepted_body_fits_its_schema(deps):
    """Each optional field alone, as it may be and as null."""
    found = set()
    routes = [each.original_route for each in iter_route_contexts(create_app(deps).routes)]
    for route in routes:
        for part in _parts(route.endpoint) if isinstance(route, Route) else ():
            if isinstance(part, JsonBody):
                found.add(part._model)
                schema = part.described()["requestBody"]["content"]["application/json"]["schema"]
                check_fields(part._model, schema)
    assert len(found) >= 12


def check_fields(model, schema):
    properties = schema.get("properties", {})
    given = {"input_file_id": "file-x", "completion_window": "24h", "endpoint": "/v1/embeddings"}
    needed = [*schema.get("required", ()), *schema.get("oneOf", [{"required": ()}])[0]["required"]]
    least = {name: corpus.least(properties[name], given, name) for name in needed}
    for name, field in properties.items():
        for value in (corpus.least(field, given, name), None):
            if is_accepted(model, least | {name: value}, Settings()):
                assert fits(schema, least | {name: value}), (model, name, value)


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in INPUTS.items()}))
@pytest.mark.parametrize("default", [None, "24h"])
def test_an_accepted_create_fits_its_schema(create_schemas, default, fields):
    """With any of its inputs, and nulls."""
    if is_accepted(NewBatch, fields, Settings(default_window=default)):
        assert fits(create_schemas[default], fields)


@pytest.fixture(scope="module")
def create_schemas(tmp_path_factory):
    """The schema of a create, without and with a default window."""

    async def made():
        async with open_dependencies(tmp_path_factory.mktemp("openapi")) as deps:
            app = create_app(deps)
            return {
                default: schema_of_create(describe(app, has_window=default is not None))
                for default in (None, "24h")
            }

    return asyncio.run(made())


@pytest.mark.parametrize("default", [None, "24h"])
async def test_the_served_document_knows_the_default_window(deps, default):
    """Without one a create must have a window."""
    async with client_of(with_settings(deps, Settings(default_window=default))) as client:
        schema = schema_of_create((await client.get("http://api/openapi.json")).json())
    assert ("completion_window" in schema["required"]) == (default is None)


async def test_models_have_one_of_the_described_shapes(deps):
    """Anthropic's clients get another one."""
    async with client_of(deps) as client:
        description = describe(client._transport.app)
        for path, given in (("/v1/models", "/models"), ("/v1/models/{model}", "/models/m")):
            schema = description["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            whole = schema | {"components": description["components"]}
            for headers in ({}, {"anthropic-version": "2023-06-01"}):
                assert fits(whole, (await client.get(given, headers=headers)).json()), (path, headers)


async def test_each_status_of_the_errors_is_documented(deps):
    """At some operation, in the table of errors and in the document alike."""
    listed = {
        int(status)
        for row in re.findall(r"^\| ([0-9, ]+) \|", ERRORS.read_text(), re.MULTILINE) for status in row.split(", ")
    }  # fmt: skip
    operations = [each for path in describe(create_app(deps))["paths"].values() for each in path.values()]
    documented = {int(status) for each in operations for status in each["responses"]}
    assert listed - documented == OF_NO_OPERATION
    assert {status for status in documented if status >= 400} - listed == {529}
    full = {each["operationId"] for each in operations if "507" in each["responses"]}
    assert len(full) == 10


async def test_an_unknown_batch_of_a_rerun_is_named(deps):
    """Its 404 is of the field, and in the document."""
    body = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    async with client_of(deps) as client:
        answer = await client.post("/batches", json=body | {"rerun_of": "batch_none"})
        responses = describe(client._transport.app)["paths"]["/v1/batches"]["post"]["responses"]
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "rerun_of")
    assert "404" in responses
