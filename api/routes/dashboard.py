"""Serves the dashboard: a page that uses the API like any other client.

The files are static and public; the page reads its data from the API, with the key that the user types in. They
are in `api/dashboard` and need no build.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from tidemill.api.http import download
from tidemill.schemas.resources.error import ApiError

FOLDER: Final = Path(__file__).parents[1] / "dashboard"
PATH: Final = "/dashboard/"
HEADERS: Final = {
    # Nothing from other origins and nothing inline, so user data cannot become code.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    type: str
    etag: str


@router.get("/")
@router.get("/dashboard")
async def home() -> Response:
    """Redirect from the address of the service to the dashboard."""
    return RedirectResponse(PATH)


@router.get(PATH)
@router.get(PATH + "{name}")
async def show(request: Request, name: str = "index.html") -> Response:
    """Serve a file of the dashboard; it needs no key."""
    if (file := _files().get(name)) is None:
        raise ApiError(404, "The dashboard has no such file.")
    headers = HEADERS | {"etag": file.etag}
    if download.matches(request.headers.get("if-none-match"), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)


@cache
def _files() -> dict[str, _File]:
    found = {}
    for path in FOLDER.iterdir():
        content = path.read_bytes()
        found[path.name] = _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()}"')
    return found
