"""The route of producers' tokens; see `schemas/log/producer_token.py`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import responses
from tidemill.api.dependencies import Caller, Deps, body, json
from tidemill.api.requests import reading
from tidemill.api.requests.fields import Stream
from tidemill.schemas.log import producer_token
from tidemill.schemas.log.producer_token import LIFE_SECONDS_DEFAULT, LIFE_SECONDS_MAX, LIFE_SECONDS_MIN
from tidemill.schemas.resources.audit import Action

router = APIRouter(prefix="/v1/intake/tokens", tags=["intake"])


class TokenWish(reading.Body):
    """What a token is made of."""

    model_config = ConfigDict(extra="forbid")

    stream: Stream
    """The stream that its holder may produce to: printable characters."""
    expires_in_seconds: Annotated[int, Field(ge=LIFE_SECONDS_MIN, le=LIFE_SECONDS_MAX)] = LIFE_SECONDS_DEFAULT
    """How long it is good, and never longer than its key. What the log gets in that time is taken, however late it
    is read."""


class NewToken(BaseModel):
    """A token, in the only answer that has it."""

    object: Literal["producer_token"] = "producer_token"
    token: str
    stream: str
    project: str
    key: str
    """Id of the API key that it was made with, and ends with."""
    created_at: int
    expires_at: int


@router.post("", response_model=NewToken, openapi_extra={"requestBody": responses.body(TokenWish)})
async def create(request: Request, deps: Deps, caller: Caller) -> Response:
    """Make a token, with which a direct producer's lines get into one stream of this project and nothing else."""
    wish = reading.body(TokenWish, await body(request), deps.settings)
    now = int(deps.clock())
    until = now + wish.expires_in_seconds
    if caller.expires_at is not None:
        # Ingest knows of a key whether it was revoked, and asks no more of it.
        until = min(until, caller.expires_at)
    claims = producer_token.Claims(sub=wish.stream, project=caller.project, key=caller.key_id, iat=now, exp=until)
    made = NewToken(
        token=producer_token.token(deps.signer, claims), stream=claims.sub, project=claims.project,
        key=claims.key, created_at=claims.iat, expires_at=claims.exp,
    )  # fmt: skip
    await deps.trail.tell(request, caller, Action.TOKEN_CREATE, wish.stream, expires_at=str(claims.exp))
    return json(made.model_dump_json().encode())
