"""The OpenAPI description of the app: what its routes say, and what is true of all of them."""

import copy
import re
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi

from tidemill import __version__
from tidemill.api.dependencies import json
from tidemill.schemas.resources.error import ErrorEnvelope

PATH = "/openapi.json"
DESCRIPTION = (
    "Files, batches and what belongs to them, as OpenAI's API has them: its SDKs work with this address as "
    "`base_url`. What is beyond that API sits in routes and fields of its own. Every answer has a header "
    "`x-request-id`, and every error OpenAI's body."
)

Node = dict[str, Any]

_ERROR: Node = {"$ref": "#/components/schemas/ErrorEnvelope"}
_WITH_KEY = {
    "400": "The request cannot be taken as it is; `param` names the field.",
    "401": "There is no key, or it is not known.",
    "403": "The key may not do this.",
    "429": "The key asks too often, or a limit of the project is reached.",
    "500": "A fault of the server's own.",
    "503": "The log, the store or the view does not answer; the same request may do in a moment.",
}
_WITHOUT_KEY = {"500": _WITH_KEY["500"], "503": _WITH_KEY["503"]}
_NOT_FOUND = "The project has no such object."
_WITH_BODY = {"413": "The body is too large."}
_WITH_FORM = {"408": "The body did not arrive in time."}

router = APIRouter()


@router.get(PATH, response_model=dict[str, Any])
async def show(request: Request) -> Response:
    """Describe the API; it needs no key."""
    app = request.app
    # Few ask for it, and it takes a tenth of a second to make.
    if not hasattr(app.state, "openapi"):
        app.state.openapi = orjson.dumps(describe(app))
    return json(app.state.openapi)


def describe(app: FastAPI) -> Node:
    """The description."""
    found = get_openapi(title="Tidemill", version=__version__, description=DESCRIPTION, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["ErrorEnvelope"] = _inlined(ErrorEnvelope.model_json_schema(mode="serialization"))
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    return found


def _complete(path: str, operation: Node) -> None:
    """Add to a route what is true of all that are like it."""
    has_key = path.startswith("/v1")
    # The first words of a route's docstring say more than the name of its function.
    operation["summary"] = re.split(r"[;:.]( |\Z)", operation["description"], maxsplit=1)[0]
    operation["security"] = [{"key": []}] if has_key else []
    errors = dict(_WITH_KEY if has_key else _WITHOUT_KEY)
    if "{" in path:
        errors["404"] = _NOT_FOUND
    if body := operation.get("requestBody"):
        errors |= _WITH_BODY
        if "multipart/form-data" in body["content"]:
            errors |= _WITH_FORM
        for content in body["content"].values():
            content["schema"] = _inlined(content["schema"])
    responses: Node = operation["responses"]
    responses.pop("422", None)
    for status, text in errors.items():
        responses.setdefault(status, {"description": text})
    for status, response in responses.items():
        response["headers"] = {"x-request-id": {"required": True, "schema": {"type": "string"}}}
        if int(status) >= 400:  # noqa: PLR2004  an error
            response["content"] = {"application/json": {"schema": _ERROR}}


def _inlined(schema: Node) -> Node:
    """The schema with what it refers to put in its place."""
    schema = copy.deepcopy(schema)
    named = schema.pop("$defs", {})

    def put(node: Any) -> Any:
        if isinstance(node, list):
            return [put(each) for each in node]
        if not isinstance(node, dict):
            return node
        if (target := node.get("$ref", "")).startswith("#/$defs/"):
            return put(named[target.removeprefix("#/$defs/")])
        return {key: put(each) for key, each in node.items()}

    inlined: Node = put(schema)
    return inlined
