"""The route that says what a client may ask for: what a batch may hold here, and what the client's key may do."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from tidemill.api.dependencies import Caller, Deps, json
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX
from tidemill.schemas.resources.access import Role

router = APIRouter(prefix="/v1/limits", tags=["batches"])


class Bounds(BaseModel):
    """What a batch may hold, and what the key may do; a file that has more fails its batch."""

    object: Literal["limits"] = "limits"
    file_bytes_max: int
    file_lines_max: int
    line_bytes_max: int
    embedding_inputs_max: int
    """Of all lines together."""
    completion_windows: list[str]
    """Those that a batch may ask for."""
    role: Role
    """Of the key that was shown."""


@router.get("", response_model=Bounds)
async def show(deps: Deps, caller: Caller) -> Response:
    """Tell what a batch may hold, and what the key may do."""
    settings = deps.settings
    found = Bounds(
        file_bytes_max=settings.file_bytes_max,
        file_lines_max=settings.file_lines_max,
        line_bytes_max=settings.line_bytes_max,
        embedding_inputs_max=EMBEDDING_INPUTS_MAX,
        completion_windows=list(settings.windows),
        role=caller.role,
    )
    return json(found.model_dump_json().encode())
