"""Tokens of direct producers: signed by the api, for one stream of one project, for a short time.

A token is a JWT (RFC 7519) in the form of `schemas/log/signing.py`. Its claims: `sub` the stream, `project`, `key`
the id of the API key that it was made with, `iat` and `exp` in Unix seconds. The api signs such tokens for its own
records, too, with `key` null: it checks the caller's key before it answers, and neither a later revocation nor a
clock that is wrong by hours undoes that answer. Such a token is for one batch: it opens it within some hours of
its creation (`ingest/streams/decisions.py`), and adds lines while it is open.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS, NAME_CHARS_MAX
from tidemill.schemas.log.signing import PRODUCER, SignatureError, Signer, Verifier
from tidemill.schemas.resources import access

AUDIENCE: Final = "tidemill.intake"
ISSUER: Final = "tidemill"
LIFE_SECONDS_MIN: Final = 60
LIFE_SECONDS_MAX: Final = 86_400
LIFE_SECONDS_DEFAULT: Final = 3_600
TOKEN_CHARS_MAX: Final = 4_096
KEY_ID_CHARS_MAX: Final = 64

_Time = Annotated[int, Field(ge=0, lt=1 << 40)]


class TokenError(Exception):
    """A token is invalid; the text says why, and does not quote it."""


class Claims(BaseModel):
    """The claims of a token."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: Literal["tidemill"] = ISSUER
    aud: Literal["tidemill.intake"] = AUDIENCE
    sub: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
    """The stream that it allows to produce to."""
    project: Annotated[str, Field(pattern=access.PROJECT)]
    key: Annotated[str, Field(min_length=1, max_length=KEY_ID_CHARS_MAX)] | None
    """Id of the API key that created it; the token is invalid once that key is. None for the api's own records."""
    iat: _Time
    exp: _Time


def token(signer: Signer, claims: Claims) -> str:
    """A token with these claims."""
    return signer.sign(PRODUCER, claims.model_dump_json().encode()).decode()


def is_token(text: str) -> bool:
    """Whether a credential has the form of a token, not of an API key."""
    return text.count(".") == 2 and not text.startswith(access.PREFIX)  # noqa: PLR2004  a JWT has three parts


def claims(verifier: Verifier, text: str) -> Claims:
    """The claims of a token with a valid signature; `check` compares them with a record.

    Raises:
        TokenError: No trusted key has signed it, or it is malformed.
    """
    if len(text) > TOKEN_CHARS_MAX or not text.isascii():
        raise TokenError("its token is not a producer token")
    try:
        payload, _ = verifier.payload(PRODUCER, text.encode())
        found = Claims.model_validate_json(payload)
    except SignatureError as error:
        raise TokenError(f"its token is invalid: {error}") from None
    except ValidationError:
        raise TokenError("its token is not a producer token") from None
    if found.exp - found.iat > LIFE_SECONDS_MAX:
        raise TokenError(f"its token is valid for longer than {LIFE_SECONDS_MAX} s")
    return found


def check(found: Claims, stream: str, at: float) -> None:
    """Check a token for a record of a stream that the log got `at` a Unix time.

    Raises:
        TokenError: It is for another stream, or was not valid then, by more than `CLOCK_SKEW_SECONDS`.
            The api's own tokens are valid at any time.
    """
    if found.sub != stream:
        raise TokenError("its token is for another stream")
    if found.key is None:
        return
    if at >= found.exp + CLOCK_SKEW_SECONDS:
        raise TokenError("its token has expired: `tidemill keys token` creates another")
    if at < found.iat - CLOCK_SKEW_SECONDS:
        raise TokenError(f"its token is more than {CLOCK_SKEW_SECONDS} s in the future: compare the clocks")
