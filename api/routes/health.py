"""The routes that a supervisor asks, without a key."""

from fastapi import APIRouter, Response

from tidemill.api import errors
from tidemill.api.dependencies import Deps, json
from tidemill.api.responses import Health

router = APIRouter(tags=["health"])


@router.get("/livez", response_model=Health)
async def live() -> Response:
    """The process answers."""
    return json(b'{"status":"ok"}')


@router.get("/readyz", response_model=Health)
async def ready(deps: Deps) -> Response:
    """The process can serve."""
    if not deps.is_ready():
        raise errors.unavailable("server's view of the log")
    return json(b'{"status":"ok"}')
