"""Serves the dashboard: a page that uses the API like any other client, and the sessions of its users.

The files are static and public; the page reads its data from the API, with the cookie of a session
(`api/access/sessions.py`). They are in `api/dashboard` and need no build.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from tidemill.api import errors
from tidemill.api.access import sessions
from tidemill.api.access.auth import Principal
from tidemill.api.access.sessions import IDLE_SECONDS, LIFE_SECONDS, Claims, Found
from tidemill.api.dependencies import Dependencies, Deps, JsonBody, ReadingCaller, json
from tidemill.api.openapi import Route
from tidemill.api.requests import reading
from tidemill.api.requests.fields import Project
from tidemill.api.routes.dashboard.sign_in import origin
from tidemill.schemas.resources.access import DEFAULT_PROJECT, Role
from tidemill.schemas.resources.audit import Action

FOLDER: Final = Path(__file__).parents[2] / "dashboard"
PATH: Final = "/dashboard/"


def _import_map() -> str:
    """The source of scripts that allows the import map of the page, which browsers only accept inline."""
    page = (FOLDER / "index.html").read_text("utf-8")
    (found,) = re.findall(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()}'"


HEADERS: Final = {
    # Nothing from other origins and no other inline code, so user data cannot become code.
    "content-security-policy": (
        f"default-src 'none'; script-src 'self' {_import_map()}; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
PROJECTS_MAX: Final = 1_000
router = APIRouter()
session_router = APIRouter(prefix="/dashboard/session", tags=["dashboard"], route_class=Route)


class SessionKey(BaseModel):
    """The key of a session, without its secret."""

    id: str
    name: str
    hint: str | None
    """The first and last characters of its secret; null for the key of the settings."""


class Session(BaseModel):
    """A session of the dashboard. Times are Unix seconds."""

    id: str
    object: Literal["dashboard.session"] = "dashboard.session"
    project: str
    """The project that it reads and writes."""
    projects: list[str]
    """The projects that it may choose: those of the person's grants; for an operator, all known ones."""
    role: Role
    key: SessionKey | None
    """Null for a person who signed in with OpenID Connect."""
    person: str | None
    """The person's email address, or the provider's `sub`; null for a key."""
    created_at: int
    expires_at: int
    """When it ends at the latest."""
    idle_seconds: int
    """It also ends this long after its last request."""


class EndedSession(BaseModel):
    """An ended session."""

    id: str
    object: Literal["dashboard.session"] = "dashboard.session"
    deleted: Literal[True] = True
    end_url: str | None
    """Where the browser goes to sign out at the OpenID provider, too; null if that offers nothing."""


class Choice(reading.Body):
    """A choice of a project."""

    project: Project
    """The project that the session goes to."""


@router.get("/", include_in_schema=False)
@router.get("/dashboard", include_in_schema=False)
async def home() -> Response:
    """Redirect from the address of the service to the dashboard."""
    return RedirectResponse(PATH)


@session_router.post("", response_model=Session)
async def sign_in(request: Request, deps: Deps, caller: ReadingCaller) -> Response:
    """Sign in with the API key of the request; the answer sets the cookie of a new session."""
    sessions.check_origin(request)
    if caller.session_id is not None:
        raise errors.no_key()
    begun = deps.access.sessions.begin(caller)
    # A session may do no more than its key, so a log that is away keeps no operator out.
    deps.trail.record_soon(request, Action.SESSION_CREATE, caller, begun.sid)
    request.state.headers = {**request.state.headers, "set-cookie": deps.access.sessions.header(request, begun)}
    return json(_shown(deps, caller, begun))


@session_router.get("", response_model=Session)
async def retrieve(request: Request, deps: Deps, caller: ReadingCaller) -> Response:
    """Get the session of the request's cookie."""
    return json(_shown(deps, caller, _found(request, deps, caller).claims))


@session_router.post("/project", response_model=Session)
async def switch(
    request: Request, deps: Deps, caller: ReadingCaller, body: Annotated[Choice, Depends(JsonBody(Choice))]
) -> Response:
    """Choose the project that the session reads and writes."""
    found = deps.access.sessions.switched(_found(request, deps, caller), body.project)
    await deps.trail.record(
        request, caller, Action.SESSION_SWITCH, body.project, owner=body.project, session=found.claims.sid
    )
    cookie = deps.access.sessions.header(request, found.claims)
    request.state.headers = {**request.state.headers, "set-cookie": cookie}
    return json(_shown(deps, found.caller, found.claims))


def _found(request: Request, deps: Dependencies, caller: Principal) -> Found:
    cookie = sessions.cookie(request)
    if caller.session_id is None or cookie is None:
        raise errors.no_session()
    return deps.access.sessions.find(cookie, is_whole=True)


@session_router.delete("", response_model=EndedSession)
async def sign_out(request: Request, deps: Deps, caller: ReadingCaller) -> Response:
    """Sign out: no api process accepts the session any more."""
    if caller.session_id is None:
        raise errors.no_session()
    # Also if the log does not answer.
    request.state.headers = {**request.state.headers, "set-cookie": sessions.cleared(request)}
    await deps.trail.record(request, caller, Action.SESSION_END, caller.session_id)
    deps.view.audit.end_session(caller.session_id, int(deps.clock()))
    end_url = None
    if caller.person is not None and deps.access.provider is not None:
        end_url = await deps.access.provider.end_address(origin(request) + PATH)
    return json(EndedSession(id=caller.session_id, end_url=end_url))


def _shown(deps: Dependencies, caller: Principal, claims: Claims) -> Session:
    own = {caller.project, *caller.projects}
    others = (
        {DEFAULT_PROJECT, *deps.view.keyring.projects(PROJECTS_MAX), *deps.settings.projects}
        if caller.is_operator
        else set()
    )
    ends = [claims.auth_time + LIFE_SECONDS, *([caller.expires_at] if caller.expires_at is not None else [])]
    return Session(
        id=claims.sid, project=caller.project, projects=sorted(own | others),
        role=caller.role, key=_key(deps, caller), person=caller.person, created_at=claims.auth_time,
        expires_at=min(ends), idle_seconds=IDLE_SECONDS,
    )  # fmt: skip


def _key(deps: Dependencies, caller: Principal) -> SessionKey | None:
    if caller.person is not None:
        return None
    if (record := deps.view.keyring.by_id(caller.key_id)) is None:
        return SessionKey(id=caller.key_id, name="settings", hint=None)
    return SessionKey(id=caller.key_id, name=record.key.name, hint=record.key.hint)


router.include_router(session_router)


class Files(StaticFiles):
    """The files of the dashboard; they need no key."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, html=True)

    def file_response(self, *args: Any, **options: Any) -> Response:
        """See `StaticFiles`; adds the headers of a page that holds a key."""
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response
