"""The routes about the service itself: health, models, limits, and the OpenAPI document."""

from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from tidemill.api import error_bodies, errors, openapi
from tidemill.api.dependencies import Caller, Deps, SettingsDep, json
from tidemill.api.openapi import Route
from tidemill.api.requests.fields import ModelName
from tidemill.configuration.servers import Model, Serving
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX
from tidemill.schemas.resources.access import Role

router = APIRouter(route_class=Route)


class ModelExtras(BaseModel):
    """Fields of a model beyond those of OpenAI."""

    aliases: list[str]
    """More names by which batches may ask for it."""
    endpoints: list[str]
    servers: list[str]
    """Names of the servers that serve it."""
    paused: bool
    """Whether its batches wait until an operator resumes it."""


class ModelObject(BaseModel):
    """A model that batches may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    tidemill: ModelExtras


class ModelList(BaseModel):
    """Models."""

    object: Literal["list"]
    data: list[ModelObject]


class ModelInfo(BaseModel):
    """A model, as Anthropic's API shows it."""

    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: str = "1970-01-01T00:00:00Z"
    lifecycle: Literal["active"] = "active"


class ModelInfoList(BaseModel):
    """Models, as Anthropic's API lists them: those with `/v1/messages`."""

    data: list[ModelInfo]
    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None


class Health(BaseModel):
    """The process is healthy."""

    status: Literal["ok"]


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
    usual_window: str
    """The default window."""
    role: Role
    """The role of the request's key."""


@router.get("/livez", response_model=Health, tags=["health"])
async def live() -> Response:
    """The process answers."""
    return json(b'{"status":"ok"}')


@router.get("/readyz", response_model=Health, tags=["health"])
async def ready(deps: Deps) -> Response:
    """The process can serve."""
    if not deps.reading.is_ready():
        raise errors.unavailable("server's view of the log")
    return json(b'{"status":"ok"}')


@router.get("/v1/models", response_model=ModelList | ModelInfoList, tags=["models"])
async def models(request: Request, deps: Deps, caller: Caller) -> Response:
    """List the models that batches may name; for Anthropic's clients, those with `/v1/messages`, in its shape."""
    del caller
    serving = deps.serving
    if error_bodies.is_anthropic_scope(request.scope):
        names = [name for name, model in serving.models.items() if error_bodies.MESSAGES in model.endpoints]
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return json(ModelInfoList(data=list(map(_model_info, names)), **ends))
    listed = [_model(name, model, serving) for name, model in serving.models.items()]
    return json(orjson.dumps({"object": "list", "data": listed}))


@router.get("/v1/models/{model:path}", response_model=ModelObject | ModelInfo, tags=["models"])
async def model_of(request: Request, deps: Deps, caller: Caller, model: ModelName) -> Response:
    """Get a model by its name or an alias; it may have slashes. Anthropic's clients get its shape."""
    del caller
    serving = deps.serving
    name = serving.aliases.get(model, model)
    if name not in serving.models:
        raise errors.no_model(model)
    if error_bodies.is_anthropic_scope(request.scope):
        return json(_model_info(name))
    return json(orjson.dumps(_model(name, serving.models[name], serving)))


def _model_info(name: str) -> ModelInfo:
    return ModelInfo(id=name, display_name=name)


def _model(name: str, model: Model, serving: Serving) -> dict[str, Any]:
    extras = {
        "aliases": model.aliases,
        "endpoints": model.endpoints,
        "servers": serving.by_model[name],
        "paused": model.paused,
    }
    # Settings have no creation time of a model, and the start of the process would mislead.
    return {"id": name, "object": "model", "created": 0, "owned_by": "tidemill", "tidemill": extras}


@router.get("/v1/limits", response_model=Limits, tags=["batches"])
async def limits(settings: SettingsDep, caller: Caller) -> Response:
    """Get the limits of a batch, and the role of the key."""
    found = Limits(
        file_bytes_max=settings.file_bytes_max,
        file_lines_max=settings.file_lines_max,
        line_bytes_max=settings.line_bytes_max,
        embedding_inputs_max=EMBEDDING_INPUTS_MAX,
        completion_windows=list(settings.windows),
        usual_window=settings.usual_window,
        role=caller.role,
    )
    return json(found)


@router.get(openapi.PATH, response_model=dict[str, Any])
async def document(request: Request, settings: SettingsDep) -> Response:
    """Describe the API; it needs no key."""
    app = request.app
    # It takes a tenth of a second to build, and few clients ask for it.
    if not hasattr(app.state, "openapi"):
        app.state.openapi = orjson.dumps(openapi.describe(app, has_window=settings.default_window is not None))
    return json(app.state.openapi)
