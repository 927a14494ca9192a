"""Sessions of the dashboard: a cookie that stands for an API key, or for a person (`api/access/people.py`).

The cookie is a JWT that the api signs (`schemas/log/signing.py`), so every api process can check it. It names the
key, and is invalid once the key is. Scripts cannot read it (`HttpOnly`), and browsers send it from pages of this
site alone (`SameSite=Strict`). A page of another port or subdomain is of the same site, so a request with the
cookie must also come from this very origin (`check_origin`).

Browsers accept a cookie whose name begins with `__Host-` only over TLS, and only from the host itself. Over TLS no
other cookie counts, so that another subdomain cannot plant a session.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidemill.api import errors
from tidemill.api.access.auth import Keys, Principal
from tidemill.api.access.people import People, Person
from tidemill.configuration.connections import is_local
from tidemill.schemas.bounds import ID_CHARS_MAX
from tidemill.schemas.log.signing import SESSION, SignatureError, Signer, Verifier
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.access import PROJECT, Role

COOKIE: Final = "tidemill_session"
HOST_PREFIX: Final = "__Host-"
SECURE_COOKIE: Final = HOST_PREFIX + COOKIE
HEADER: Final = "x-tidemill-csrf"
"""A request that changes something needs this header with any value: no form and no link can set it."""
IDLE_SECONDS: Final = 8 * 3_600
"""A session ends this long after its last request."""
LIFE_SECONDS: Final = 3 * 86_400
"""A session ends this long after its sign-in."""
RENEW_SECONDS: Final = 300
"""Age of a cookie at which an answer replaces it."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
SAFE_SITES: Final = frozenset({"same-origin", "none"})
"""`none` is a request that the user makes, not a page."""

_Id = Annotated[str, Field(min_length=1, max_length=ID_CHARS_MAX)]
_Time = Annotated[int, Field(ge=0, lt=1 << 40)]


class Claims(BaseModel):
    """The claims of a session's JWT."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: Literal["tidemill"] = "tidemill"
    aud: Literal["tidemill.dashboard"] = "tidemill.dashboard"
    sid: _Id
    """The id of the session."""
    key: _Id
    """The id of its key, or of the person."""
    secret: _Id
    """A fingerprint of the key's secret, or of the settings of OpenID Connect: the session ends with them."""
    person: Person | None = None
    project: Annotated[str, Field(pattern=PROJECT)] | None = None
    """The project that the user has chosen, if it is not the first one."""
    auth_time: _Time
    """When the user signed in."""
    iat: _Time
    """When the cookie was made."""
    exp: _Time


@dataclass(frozen=True, kw_only=True)
class Found:
    """A valid session."""

    caller: Principal
    claims: Claims


class Sessions:
    """Begins and checks sessions."""

    def __init__(
        self,
        keys: Keys,
        signer: Signer,
        verifier: Verifier,
        has_ended: Callable[[str], bool],
        clock: Clock,
        *,
        people: People | None = None,
    ) -> None:
        """`has_ended` says whether the user has ended a session by its id; without `people`, no person has one."""
        self._keys = keys
        self._people = people
        self._signer = signer
        self._verifier = verifier
        self._has_ended = has_ended
        self._clock = clock

    def begin(self, caller: Principal, person: Person | None = None) -> Claims:
        """A new session of a caller that has just shown its key, or of a person."""
        now = int(self._clock())
        return self._lasting(
            Claims(
                sid=f"session_{secrets.token_hex(16)}", key=caller.key_id, secret=_fingerprint(caller.digest),
                person=person, auth_time=now, iat=now, exp=now,
            ),
            caller,
        )  # fmt: skip

    def find(self, cookie: str, *, is_whole: bool) -> Found:
        """The session of a cookie.

        Without `is_whole`, the keyring may lack keys that the log has.

        Raises:
            ApiError: 401, this service did not make the cookie, or the session, or its key, has ended; 503, the
                keyring may not have the key yet.
        """
        try:
            claims = Claims.model_validate_json(self.verified(SESSION, cookie))
        except (SignatureError, ValidationError):
            raise errors.wrong_session() from None
        if self._clock() >= claims.exp or self._has_ended(claims.sid):
            raise errors.ended_session()
        caller = self._caller(claims, is_whole=is_whole)
        if _fingerprint(caller.digest) != claims.secret or self._clock() >= (caller.expires_at or claims.exp):
            raise errors.ended_session()
        return Found(caller=replace(caller, session_id=claims.sid), claims=claims)

    def _caller(self, claims: Claims, *, is_whole: bool) -> Principal:
        if claims.person is None:
            caller = self._keys.named(claims.key, is_whole=is_whole)
            if claims.project not in {None, caller.project}:
                # An operator may choose any project.
                if not caller.is_operator:
                    raise errors.ended_session()
                caller = replace(caller, project=claims.project or caller.project)
            return caller
        if self._people is None:
            raise errors.ended_session()
        return self._people.caller(claims.person, since=claims.auth_time, project=claims.project)

    def switched(self, found: Found, project: str) -> Found:
        """The session in another project.

        Raises:
            ApiError: 403, the caller may not choose it.
        """
        caller = found.caller
        if not caller.is_operator and project not in {caller.project, *caller.projects}:
            raise errors.forbidden(caller.role, Role.OPERATOR)
        claims = found.claims.model_copy(update={"project": project, "iat": int(self._clock())})
        caller = replace(self._caller(claims, is_whole=True), session_id=claims.sid)
        return Found(caller=caller, claims=self._lasting(claims, caller))

    def verified(self, kind: str, cookie: str) -> bytes:
        """The content of a cookie of this kind.

        Raises:
            SignatureError: This service did not make it.
        """
        return self._verifier.payload(kind, cookie.encode(errors="replace"))[0]

    def renewed(self, found: Found) -> Claims | None:
        """The session with a later end; None if its cookie is new enough."""
        if self._clock() < found.claims.iat + RENEW_SECONDS:
            return None
        return self._lasting(found.claims.model_copy(update={"iat": int(self._clock())}), found.caller)

    def header(self, request: Request, claims: Claims) -> str:
        """The value of `Set-Cookie` for a session."""
        value = self._signer.sign(SESSION, claims.model_dump_json().encode()).decode()
        return _header(request, value, claims.exp - int(self._clock()))

    def _lasting(self, claims: Claims, caller: Principal) -> Claims:
        ends = [claims.iat + IDLE_SECONDS, claims.auth_time + LIFE_SECONDS]
        if caller.expires_at is not None:
            ends.append(caller.expires_at)
        return claims.model_copy(update={"exp": min(ends)})


def cookie(request: Request) -> str | None:
    """The session's cookie of a request."""
    if (found := request.cookies.get(SECURE_COOKIE)) is not None:
        return found
    return None if _is_over_tls(request) else request.cookies.get(COOKIE)


def named_cookie(request: Request, name: str) -> str:
    """A cookie of a request; empty if it has none of this name."""
    return request.cookies.get(name, "")


def cleared(request: Request) -> str:
    """The value of `Set-Cookie` that deletes the cookie."""
    return _header(request, "", 0)


def check_origin(request: Request) -> None:
    """Check that a page of this origin made a request with a session's cookie.

    A request that changes something must have the header `x-tidemill-csrf`, and say where it comes from: by
    `Sec-Fetch-Site`, which scripts cannot set, or in older browsers and over plain HTTP by `Origin`. Source:
    OWASP, Cross-Site Request Forgery Prevention Cheat Sheet.

    Raises:
        ApiError: 403.
    """
    is_safe = request.method in SAFE_METHODS
    if not is_safe and HEADER not in request.headers:
        raise errors.cross_origin(f"the header {HEADER} is missing")
    if (site := request.headers.get("sec-fetch-site")) is not None:
        is_own = site == "same-origin" or (is_safe and site in SAFE_SITES)
    elif (origin := request.headers.get("origin")) is not None:
        is_own = origin.partition("://")[2] == request.headers.get("host")
    else:
        is_own = is_safe
    if not is_own:
        raise errors.cross_origin(
            "it does not come from a page of this server. Use a key, or open this server's own address"
        )


def _header(request: Request, value: str, seconds: int) -> str:
    name = SECURE_COOKIE if is_secure(request) or SECURE_COOKIE in request.cookies else COOKIE
    return cookie_header(name, value, seconds, same_site="Strict")


def cookie_header(name: str, value: str, seconds: int, *, same_site: str) -> str:
    """The value of `Set-Cookie`; a name that begins with `__Host-` needs TLS."""
    ending = "; Secure" if name.startswith(HOST_PREFIX) else ""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite={same_site}{ending}"


def is_secure(request: Request) -> bool:
    """Whether the browser reaches the api over TLS, which may end at a proxy."""
    has_tls = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    return has_tls or _is_over_tls(request)


def _is_over_tls(request: Request) -> bool:
    # Browsers send this header over TLS, and to addresses of the machine itself.
    return "sec-fetch-site" in request.headers and not is_local(request.url.hostname or "")


def _fingerprint(digest: str) -> str:
    return hashlib.sha256(digest.encode()).hexdigest()[:32]
