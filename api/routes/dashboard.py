"""The dashboard: a page that is a client of the API like any other, and its files.

The files are the same for everybody and hold no data; what the page shows it asks the API for, with the key that
is typed into it. It is made of what stands in `api/dashboard`, without a build.
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
    # Nothing from elsewhere, nothing inline: what users sent cannot become code.
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
    """Where somebody lands who types in the address of the service."""
    return RedirectResponse(PATH)


@router.get(PATH)
@router.get(PATH + "{name}")
async def show(request: Request, name: str = "index.html") -> Response:
    """One of the files; none of them needs a key."""
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
