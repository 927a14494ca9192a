"""Batches whose answers must fit a JSON Schema, over a real app: the create, and what reaches ingest."""

import orjson
import pytest
from support.dependencies import NOW, commands

from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.log.part import schema_key
from tidemill.schemas.ports import once
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status

SCHEMA = {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}
BODY = {
    "endpoint": "/v1/chat/completions", "completion_window": "24h",
    "requests": [{"custom_id": "1", "body": {"model": "m", "messages": []}}],
}  # fmt: skip


async def create(client, schema=SCHEMA, **fields):
    """Create a batch with a schema."""
    headers = {"Idempotency-Key": fields.pop("key", "k")}
    return await client.post("/batches", json=BODY | {"validate": {"schema": schema}} | fields, headers=headers)


async def test_the_schema_goes_with_the_command(client, deps):
    """The batch says that it has one; another schema with the same key is another request."""
    made = (await create(client)).json()
    assert made["tidemill"]["validated"] is True
    (command,) = commands(deps)
    assert orjson.loads(command.answer_schema) == SCHEMA
    assert (await create(client)).json()["id"] == made["id"]
    assert (await create(client, {"type": "object"})).status_code == 409


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"schema": {"type": "thing"}}, "validate.schema", "invalid_schema", "is invalid"),
        (
            {"schema": {"$ref": "https://example.com/s"}},
            "validate.schema",
            "invalid_schema",
            "only parts of the schema",
        ),
        ({"schema": {"description": "x" * 32_768}}, "validate.schema", "string_above_max_length", "too long"),
        ({"schema": {"pattern": "("}}, "validate.schema", "invalid_schema", "is invalid"),
        ({"schema": []}, "validate.schema", "invalid_type", "an object"),
        ({"validate": {}}, "validate.schema", "missing_required_parameter", "validate.schema"),
        ({"validate": "yes"}, "validate", "invalid_type", "an object"),
        ({"endpoint": "/v1/embeddings"}, "validate", "invalid_value", "have no text"),
    ],
)
async def test_faults_of_a_schema(client, deps, *, fields, param, code, message):
    """They are found at once."""
    error = (await create(client, **fields)).json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert message in error["message"]
    assert not deps.log.records


async def test_a_rerun_checks_its_answers_too(client, deps):
    """With the schema of the first batch, while the store has it."""
    made = Batch.model_validate((await create(client)).json())
    counts = RequestCounts(total=1, failed=1)
    changes = {"status": Status.COMPLETED, "completed_at": NOW, "request_counts": counts}
    ended = made.model_copy(update=changes)
    deps.view.put_batch(BatchRecord(project="p", batch=ended))
    gone = await client.post(f"/batches/{made.id}/rerun", json={"lines": "all"})
    assert (gone.status_code, "JSON Schema" in gone.json()["error"]["message"]) == (409, True)
    text = commands(deps)[0].answer_schema
    await deps.store.write(schema_key(made.id), once(text.encode()))
    again = (await client.post(f"/batches/{made.id}/rerun", json={"lines": "all"})).json()
    assert again["tidemill"]["validated"] is True
    assert commands(deps)[-1].answer_schema == text
