"""Tokens of direct producers: signed by the api, good for one stream of one project, for a short time.

A token is a JWT (RFC 7519) in the form of `schemas/log/signing.py`. Its claims: `sub` the stream, `project`, `key`
the id of the API key that it was made with, `iat` and `exp` in Unix seconds.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidemill.schemas.log import intake
from tidemill.schemas.log.signing import PRODUCER, SignatureError, Signer, Verifier
from tidemill.schemas.resources import access

AUDIENCE: Final = "tidemill.intake"
ISSUER: Final = "tidemill"
LIFE_SECONDS_MIN: Final = 60
LIFE_SECONDS_MAX: Final = 86_400
LIFE_SECONDS_DEFAULT: Final = 3_600
SKEW_SECONDS_MAX: Final = 60
"""How far the clocks of the api and of whoever judges a token may differ."""
TOKEN_CHARS_MAX: Final = 4_096
KEY_ID_CHARS_MAX: Final = 64

_Time = Annotated[int, Field(ge=0, lt=1 << 40)]


class TokenError(Exception):
    """A token lets nothing in; the text says why and quotes nothing of it."""


class Claims(BaseModel):
    """What a token says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    iss: Literal["tidemill"] = ISSUER
    aud: Literal["tidemill.intake"] = AUDIENCE
    sub: Annotated[str, Field(min_length=1, max_length=intake.NAME_CHARS_MAX)]
    """The stream that its holder may produce to."""
    project: Annotated[str, Field(pattern=access.PROJECT)]
    key: Annotated[str, Field(min_length=1, max_length=KEY_ID_CHARS_MAX)]
    """Id of the API key that it was made with: it ends with that one."""
    iat: _Time
    exp: _Time


def token(signer: Signer, claims: Claims) -> str:
    """The token that says so."""
    return signer.sign(PRODUCER, claims.model_dump_json().encode()).decode()


def is_token(text: str) -> bool:
    """Whether a credential has the form of a token, rather than of an API key."""
    return text.count(".") == 2 and not text.startswith(access.PREFIX)  # noqa: PLR2004  a JWT has three parts


def claims(verifier: Verifier, text: str) -> Claims:
    """What a token says, its signature checked and nothing else; see `check`.

    Raises:
        TokenError: No trusted key has signed it, or it is too long.
    """
    if len(text) > TOKEN_CHARS_MAX or not text.isascii():
        raise TokenError("its token is no producer token")
    try:
        payload, _ = verifier.payload(PRODUCER, text.encode())
        found = Claims.model_validate_json(payload)
    except SignatureError as error:
        raise TokenError(f"its token lets nothing in: {error}") from None
    except ValidationError:
        raise TokenError("its token is no producer token") from None
    if found.exp - found.iat > LIFE_SECONDS_MAX:
        raise TokenError(f"its token is good for longer than {LIFE_SECONDS_MAX} s")
    return found


def check(found: Claims, stream: str, at: float) -> None:
    """See whether a token lets a record in.

    Args:
        found: What it says.
        stream: The record's stream.
        at: When the log got the record, Unix seconds.

    Raises:
        TokenError: It is for another stream, or for another time, by more than `SKEW_SECONDS_MAX`.
    """
    if found.sub != stream:
        raise TokenError("its token is for another stream")
    if at >= found.exp + SKEW_SECONDS_MAX:
        raise TokenError("its token is expired: `tidemill keys token` makes another")
    if at < found.iat - SKEW_SECONDS_MAX:
        raise TokenError(f"its token is of the future by more than {SKEW_SECONDS_MAX} s: compare the clocks")
