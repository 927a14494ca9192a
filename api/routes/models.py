"""The routes of models."""

from typing import Any

import orjson
from fastapi import APIRouter, Response

from tidemill.api import errors, responses
from tidemill.api.dependencies import Caller, Deps, json
from tidemill.api.requests.fields import ModelId

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=responses.ModelList)
async def index(deps: Deps, caller: Caller) -> Response:
    """List the models that batches may name."""
    del caller
    return json(orjson.dumps({"object": "list", "data": [_model(name) for name in deps.settings.models]}))


@router.get("/{model:path}", response_model=responses.ModelObject)
async def retrieve(model: ModelId, deps: Deps, caller: Caller) -> Response:
    """Get a model; its name may have slashes."""
    del caller
    if model not in deps.settings.models:
        raise errors.no_model(model)
    return json(orjson.dumps(_model(model)))


def _model(name: str) -> dict[str, Any]:
    # Settings do not say since when a model is there, and a time that changes with each start would mislead.
    return {"id": name, "object": "model", "created": 0, "owned_by": "tidemill"}
