"""Signs people in with OpenID Connect: the authorization code flow with PKCE, state and nonce.

Sources: OpenID Connect Core 1.0, RFC 9700.
"""

import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tidemill.configuration.projects import is_usable

SUB_CHARS_MAX: Final = 255


class Reason(StrEnum):
    """Why a sign-in is refused; the page has a sentence for each."""

    UNAVAILABLE = "provider_unavailable"
    """The provider does not answer in time, or with an error."""
    DENIED = "denied"
    """The provider has not signed the person in."""
    NOT_BEGUN = "not_begun"
    """This browser has begun no such sign-in, or too long ago."""
    INVALID = "invalid_answer"
    """The provider's answer is not valid."""
    NO_ACCESS = "no_access"
    """The person has none of the grants."""
    TOO_MANY = "too_many"
    """Too many sign-ins from one address were refused, or too many are under way."""


class Refused(Exception):
    """A sign-in is refused; the text is for the log and the audit trail, and quotes no secret."""

    def __init__(self, reason: Reason, text: str, person: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.person = person


def _usable(url: str) -> str:
    if not is_usable(url):
        raise ValueError("not https")
    return url


_Endpoint = Annotated[str, Field(max_length=2048), AfterValidator(_usable)]


class Metadata(BaseModel):
    """The parts of the provider's configuration that a sign-in uses."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    authorization_endpoint: _Endpoint
    token_endpoint: _Endpoint
    jwks_uri: _Endpoint
    userinfo_endpoint: _Endpoint | None = None
    end_session_endpoint: _Endpoint | None = None
    id_token_signing_alg_values_supported: list[str]
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]
    authorization_response_iss_parameter_supported: bool = False


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """Values that tie an answer of the provider to the browser that began the sign-in."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def made(cls) -> "Secrets":
        """Generate new secrets."""
        return cls(
            state=secrets.token_urlsafe(32), nonce=secrets.token_urlsafe(32), verifier=secrets.token_urlsafe(48)
        )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person, as the provider says."""

    sub: str
    email: str | None
    """Only if the provider has verified it."""
    values: frozenset[str]
    """The person's values of the claim that the grants refer to."""
