"""Serves the dashboard: a page that uses the API like any other client.

The files are static and public; the page reads its data from the API, with the key that the user types in. They
are in `api/dashboard` and need no build.
"""

from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

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
router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/dashboard")
async def home() -> Response:
    """Redirect from the address of the service to the dashboard."""
    return RedirectResponse(PATH)


class Files(StaticFiles):
    """The files of the dashboard; they need no key."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, html=True)

    def file_response(self, *args: Any, **options: Any) -> Response:
        """See `StaticFiles`; adds the headers of a page that holds a key."""
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response
