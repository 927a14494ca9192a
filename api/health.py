"""The routes that a supervisor asks, without a key."""

from fastapi import APIRouter, Response

from tidemill.api import errors
from tidemill.api.doors import Opened, json

router = APIRouter()


@router.get("/livez")
async def live() -> Response:
    """The process answers."""
    return json(b'{"status":"ok"}')


@router.get("/readyz")
async def ready(doors: Opened) -> Response:
    """The process can serve."""
    if not doors.is_ready():
        raise errors.unavailable("server's view of the log")
    return json(b'{"status":"ok"}')
