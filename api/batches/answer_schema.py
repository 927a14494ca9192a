"""The JSON Schema that the answers of a batch must fit: of a create, or of the batch that a rerun repeats."""

from collections.abc import Mapping
from typing import Any

import orjson

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies, chunks_from_store
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.bounds import ANSWER_SCHEMA_CHARS_MAX
from tidemill.schemas.endpoints import TEXTS
from tidemill.schemas.json_schema import Checker, SchemaError
from tidemill.schemas.log.part import schema_key
from tidemill.schemas.ports import NotFound, read_all
from tidemill.schemas.resources.batch import Batch


async def checked(deps: Dependencies, project: str, schema: Mapping[str, Any], endpoint: str) -> str:
    """The text of a schema for answers of an endpoint.

    Raises:
        ApiError: 400, the schema is invalid or exceeds its bounds, or the answers have no text; 429 or 503, too
            many batches are being created.
    """
    if endpoint not in TEXTS:
        raise errors.invalid_param("validate", f"the answers of '{endpoint}' have no text.")
    text = orjson.dumps(schema).decode()
    if len(text) > ANSWER_SCHEMA_CHARS_MAX:
        raise errors.too_long("validate.schema", ANSWER_SCHEMA_CHARS_MAX, len(text))
    try:
        async with deps.gates.creates.turn(project):
            await run_half_time(Checker, schema)
    except SchemaError as error:
        raise errors.invalid_param("validate.schema", f"{error}.", code="invalid_schema") from error
    return text


async def of_batch(deps: Dependencies, batch: Batch) -> str | None:
    """The text of a batch's schema; None if it has none.

    Raises:
        ApiError: 409, it is deleted; 503, the store does not answer.
    """
    if not batch.tidemill.validated:
        return None
    try:
        return (await read_all(chunks_from_store(deps.store.read(schema_key(batch.id))))).decode()
    except NotFound as error:
        why = "The JSON Schema of the batch is deleted with its log: create a batch with 'validate' instead."
        raise errors.conflict(why) from error
