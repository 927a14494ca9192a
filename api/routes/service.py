"""The routes about the service itself: health, models, limits, and the OpenAPI document."""

from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from tidemill.api import errors, openapi, responses
from tidemill.api.dependencies import Caller, Deps, json
from tidemill.api.openapi import Route
from tidemill.api.requests.fields import ModelName
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX
from tidemill.schemas.resources.access import Role

router = APIRouter(route_class=Route)


class Limits(BaseModel):
    """Limits of a batch, and the role of the key; a larger file fails its batch."""

    object: Literal["limits"] = "limits"
    file_bytes_max: int
    file_lines_max: int
    line_bytes_max: int
    embedding_inputs_max: int
    """Inputs of all lines together."""
    completion_windows: list[str]
    """Windows that a batch may have."""
    role: Role
    """Of the key that was sent."""


@router.get("/livez", response_model=responses.Health, tags=["health"])
async def live() -> Response:
    """The process answers."""
    return json(b'{"status":"ok"}')


@router.get("/readyz", response_model=responses.Health, tags=["health"])
async def ready(deps: Deps) -> Response:
    """The process can serve."""
    if not deps.is_ready():
        raise errors.unavailable("server's view of the log")
    return json(b'{"status":"ok"}')


@router.get("/v1/models", response_model=responses.ModelList, tags=["models"])
async def models(deps: Deps, caller: Caller) -> Response:
    """List the models that batches may name."""
    del caller
    return json(orjson.dumps({"object": "list", "data": [_model(name) for name in deps.settings.models]}))


@router.get("/v1/models/{model:path}", response_model=responses.ModelObject, tags=["models"])
async def model_of(deps: Deps, caller: Caller, model: ModelName) -> Response:
    """Get a model; its name may have slashes."""
    del caller
    if model not in deps.settings.models:
        raise errors.no_model(model)
    return json(orjson.dumps(_model(model)))


def _model(name: str) -> dict[str, Any]:
    # Settings have no creation time of a model, and the time of the start would mislead.
    return {"id": name, "object": "model", "created": 0, "owned_by": "tidemill"}


@router.get("/v1/limits", response_model=Limits, tags=["batches"])
async def limits(deps: Deps, caller: Caller) -> Response:
    """Get the limits of a batch, and the role of the key."""
    settings = deps.settings
    found = Limits(
        file_bytes_max=settings.file_bytes_max,
        file_lines_max=settings.file_lines_max,
        line_bytes_max=settings.line_bytes_max,
        embedding_inputs_max=EMBEDDING_INPUTS_MAX,
        completion_windows=list(settings.windows),
        role=caller.role,
    )
    return json(found.model_dump_json().encode())


@router.get(openapi.PATH, response_model=dict[str, Any])
async def document(request: Request) -> Response:
    """Describe the API; it needs no key."""
    app = request.app
    # Few ask for it, and it takes a tenth of a second to make.
    if not hasattr(app.state, "openapi"):
        app.state.openapi = orjson.dumps(openapi.describe(app))
    return json(app.state.openapi)
