"""Sign-in at the dashboard with OpenID Connect: the browser goes to the provider, and comes back with a code.

A signed cookie, which scripts cannot read, ties the way back to this browser. Each way ends at the dashboard; its
page says why a sign-in was refused.
"""

import hmac
import logging
import re
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidemill.api.access import sessions, trail
from tidemill.api.access.openid import Identity, Metadata, Reason, Refused, Secrets
from tidemill.api.access.sessions import HOST_PREFIX
from tidemill.api.dependencies import Dependencies, Deps
from tidemill.api.requests import reading
from tidemill.api.requests.parts import Query
from tidemill.schemas.log.signing import SIGN_IN, SignatureError
from tidemill.schemas.resources.access import is_project
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.error import ApiError

if TYPE_CHECKING:
    from tidemill.api.access.provider import Provider

SECONDS_MAX: Final = 600
"""How long a person may take at the provider."""
COOKIE: Final = "tidemill_sign_in"
DASHBOARD: Final = "/dashboard/"
CALLBACK: Final = "/dashboard/sign-in/callback"
HOME: Final = "#/"
PLACE_CHARS_MAX: Final = 1024
_Text = Annotated[str, Field(max_length=4096)]
_PLACE: Final = re.compile(r"/[!-~]*\Z")
"""A place in the dashboard; it stands behind a `#`, so it leads to no other site."""
SEE_OTHER: Final = 303

router = APIRouter(include_in_schema=False)
_log = logging.getLogger(__name__)


class OpenIdInfo(BaseModel):
    """The provider."""

    issuer: str


class WaysIn(BaseModel):
    """The ways to sign in besides a key."""

    object: Literal["dashboard.sign_in"] = "dashboard.sign_in"
    openid: OpenIdInfo | None


class _Begun(BaseModel):
    """The content of the cookie."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: Literal["tidemill"] = "tidemill"
    aud: Literal["tidemill.sign-in"] = "tidemill.sign-in"
    secrets: Secrets
    place: str
    """The end of the address in the dashboard, as `_place` makes it."""
    exp: int


@router.get("/dashboard/sign-in")
async def ways_in(deps: Deps) -> WaysIn:
    """Get the ways to sign in besides a key."""
    provider = deps.access.provider
    return WaysIn(openid=None if provider is None else OpenIdInfo(issuer=provider.settings.issuer))


class BeginQuery(reading.Parameters):
    """The query of a sign-in."""

    to: Annotated[str, Field(max_length=PLACE_CHARS_MAX)] = "/"
    """The place in the dashboard where the browser comes back."""
    project: Annotated[str, Field(max_length=PLACE_CHARS_MAX)] = ""
    """The project of the address there, if it has one."""


class AnswerQuery(reading.Parameters):
    """The answer of the provider."""

    state: _Text = ""
    code: _Text = ""
    iss: _Text | None = None
    error: _Text | None = None


@router.get("/dashboard/sign-in/openid")
async def begin(
    request: Request, deps: Deps, query: Annotated[BeginQuery, Depends(Query(BeginQuery))]
) -> Response:
    """Send the browser to the provider."""
    place = _place(query.to, query.project)
    if (provider := deps.access.provider) is None:
        return RedirectResponse(f"{DASHBOARD}{place}", SEE_OTHER)
    known = Secrets.made()
    try:
        async with deps.gates.sign_ins.turn("begin"):
            address = await provider.address(known, _callback(request))
    except (Refused, ApiError) as error:
        return _refused(request, deps, _reason(error), str(error), place=place)
    begun = _Begun(secrets=known, place=place, exp=int(deps.clock()) + SECONDS_MAX)
    value = deps.signer.sign(SIGN_IN, begun.model_dump_json().encode()).decode()
    answer = RedirectResponse(address, SEE_OTHER)
    answer.headers.append("set-cookie", _cookie(request, value, SECONDS_MAX))
    return answer


@router.get(CALLBACK)
async def finish(
    request: Request, deps: Deps, query: Annotated[AnswerQuery, Depends(Query(AnswerQuery))]
) -> Response:
    """Take the code of the provider, and begin the person's session."""
    begun = _begun(request, deps)
    place = begun.place if begun is not None else HOME
    try:
        provider, begun = await _checked(deps, query, begun)
        async with deps.gates.sign_ins.turn("finish"):
            identity = await provider.identity(query.code, begun.secrets, _callback(request))
        answer = _signed_in(request, deps, identity, place)
    except (Refused, ApiError) as error:
        person = error.person if isinstance(error, Refused) else ""
        answer = _refused(request, deps, _reason(error), str(error), place=place, person=person)
    # Each sign-in has one way back.
    answer.headers.append("set-cookie", _cookie(request, "", 0))
    return answer


async def _checked(deps: Dependencies, given: AnswerQuery, begun: _Begun | None) -> "tuple[Provider, _Begun]":
    """The provider, and the sign-in that this browser has begun and the provider's answer belongs to.

    Raises:
        Refused: The answer does not belong to the sign-in, or is an error.
    """
    if (provider := deps.access.provider) is None or begun is None:
        raise Refused(Reason.NOT_BEGUN, "the browser has begun no sign-in, or too long ago")
    if not hmac.compare_digest(given.state.encode(), begun.secrets.state.encode()):
        raise Refused(Reason.NOT_BEGUN, "the state is that of another sign-in")
    metadata = await provider.metadata()
    if not _is_of(metadata, given.iss):
        raise Refused(Reason.INVALID, "the answer names another issuer")
    if given.error is not None:
        raise Refused(Reason.DENIED, f"the provider answers {given.error[:60]!a}")
    if not given.code:
        raise Refused(Reason.INVALID, "the provider has sent no code")
    return provider, begun


def _is_of(metadata: Metadata, issuer: str | None) -> bool:
    """Whether an answer comes from the provider (RFC 9207)."""
    if issuer is None:
        return not metadata.authorization_response_iss_parameter_supported
    return issuer == metadata.issuer


def _signed_in(request: Request, deps: Dependencies, identity: Identity, place: str) -> Response:
    people = deps.access.people
    assert people is not None
    if (person := people.person(identity)) is None:
        who = identity.email or identity.sub
        raise Refused(Reason.NO_ACCESS, "the person has none of the grants", who)
    caller = people.caller(person, since=int(deps.clock()))
    session = deps.access.sessions.begin(caller, person)
    deps.trail.record_soon(request, Action.SESSION_CREATE, caller, session.sid, sub=identity.sub, role=caller.role)
    answer = RedirectResponse(f"{DASHBOARD}{place}", SEE_OTHER)
    answer.headers.append("set-cookie", deps.access.sessions.header(request, session))
    return answer


def _refused(
    request: Request, deps: Dependencies, reason: Reason, text: str, *, place: str, person: str = ""
) -> Response:
    """Back to the page, which explains the reason; the log and the audit trail have the text."""
    if reason is not Reason.TOO_MANY and deps.access.refusals.count(trail.address(request)):
        reason = Reason.TOO_MANY
    if reason is not Reason.TOO_MANY:
        _log.warning("%s: a sign-in was refused: %s", request.state.request_id, text)
        deps.trail.record_soon(request, Action.SESSION_REFUSE, reason=text, person=person or "-")
    query = urlencode({"refused": reason, "request": request.state.request_id})
    project, _, page = place.partition("#")
    return RedirectResponse(f"{DASHBOARD}{project or '?'}{'&' * bool(project)}{query}#{page}", SEE_OTHER)


def _place(page: str, project: str) -> str:
    """The end of an address: the project, if the address had one, and the page; what is malformed is left out."""
    named = f"?{urlencode({'project': project})}" if is_project(project) else ""
    return f"{named}#{page}" if _PLACE.match(page) else f"{named}{HOME}"


def _reason(error: Refused | ApiError) -> Reason:
    return error.reason if isinstance(error, Refused) else Reason.TOO_MANY


def _callback(request: Request) -> str:
    """The redirect URI. The provider compares it with the registered ones, so a false `Host` leads nowhere."""
    return origin(request) + CALLBACK


def origin(request: Request) -> str:
    """The origin that the browser has for this server."""
    return f"{'https' if sessions.is_secure(request) else 'http'}://{request.url.netloc}"


def _cookie(request: Request, value: str, seconds: int) -> str:
    # The provider's answer comes from another site, so the cookie is not a strict one.
    return sessions.cookie_header(_cookie_name(request), value, seconds, same_site="Lax")


def _cookie_name(request: Request) -> str:
    return f"{HOST_PREFIX if sessions.is_secure(request) else ''}{COOKIE}"


def _begun(request: Request, deps: Dependencies) -> _Begun | None:
    text = sessions.named_cookie(request, _cookie_name(request))
    try:
        payload = deps.access.sessions.verified(SIGN_IN, text)
        begun = _Begun.model_validate_json(payload)
    except (SignatureError, ValidationError):
        return None
    return begun if deps.clock() < begun.exp else None
