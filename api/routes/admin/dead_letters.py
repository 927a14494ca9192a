"""The routes of dead letters: an operator sees the records that no stage could process, and sends them again.

The readers of each topic count a record that comes twice once, so a request that is repeated does no harm. A mark
in `tidemill.dead` keeps a letter from being sent again unasked.
"""

from collections.abc import AsyncGenerator, Container
from contextlib import aclosing, suppress
from enum import StrEnum
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies, Deps, JsonBody, OperatorCaller, json
from tidemill.api.openapi import Route
from tidemill.api.requests import reading
from tidemill.api.requests.parts import PathId, Query
from tidemill.kafka.partitions.dead_letters import send_again
from tidemill.schemas import bounds
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.dead_letters import DeadLetter, RequeueMark
from tidemill.schemas.ports import Edge
from tidemill.schemas.resources.audit import Action

LETTERS_MAX: Final = 1_000
"""The newest letters that an answer may have."""
VALUE_BYTES_SHOWN: Final = 2_000
KEY_CHARS_SHOWN: Final = 255
LIMIT_DEFAULT: Final = 100
REQUEUED_MAX: Final = 100
"""Letters that one request sends again."""

router = APIRouter(prefix="/v1/admin/dead_letters", tags=["admin"], route_class=Route)


class ShownLetter(BaseModel):
    """A record that a stage could not process."""

    id: str
    """`topic/partition/offset` of the record."""
    object: Literal["dead_letter"] = "dead_letter"
    topic: str
    stage: str
    reason: str
    at: int
    """When the stage gave up on it, Unix seconds."""
    key: str
    """The record's own key, up to 255 characters."""
    bytes: int
    """The length of its value."""
    is_cut: bool
    """Whether the letter lacks the value, which is too large for it; such a record cannot be sent again."""
    requeued_at: int | None
    """When an operator sent it to its topic again, Unix seconds."""


class LetterWithValue(ShownLetter):
    """A dead letter with the beginning of its value."""

    value: str
    """The first 2,000 bytes, as text."""


class Letters(BaseModel):
    """Dead letters, the newest first."""

    object: Literal["list"] = "list"
    data: list[ShownLetter]
    has_more: bool
    """Whether there are more, which are older."""


class LettersQuery(reading.Parameters):
    """The query of dead letters."""

    limit: Annotated[int, Field(ge=1, le=LETTERS_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many to list at most."""


class RequeueRequest(reading.Body):
    """Dead letters to send to their topics again."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[bounds.Filename], Field(min_length=1, max_length=REQUEUED_MAX)]
    """Their ids."""
    again: bool = False
    """Also those that were sent before."""


class Requeued(StrEnum):
    """The outcome of a request to send a letter."""

    SENT = "sent"
    """Its topic has the record again."""
    SENT_BEFORE = "sent_before"
    """It was sent before, and stays as it is."""
    TOO_LARGE = "too_large"
    """The letter does not hold the record's value."""
    REFUSED = "refused"
    """Its topic takes no record again; `reason` says why."""
    NOT_FOUND = "not_found"


class RequeuedLetter(BaseModel):
    """A letter, and the outcome of sending it."""

    id: str
    result: Requeued
    requeued_at: int | None
    """When it was sent last, Unix seconds."""
    reason: str | None = None
    """Why it was refused; null otherwise."""


class RequeuedLetters(BaseModel):
    """The letters of a request, in its order."""

    object: Literal["list"] = "list"
    data: list[RequeuedLetter]


LetterId = Annotated[
    str, Depends(PathId("letter", errors.no_letter, min_length=1, max_length=bounds.NAME_CHARS_MAX))
]


@router.get("", response_model=Letters)
async def index(
    deps: Deps, caller: OperatorCaller, query: Annotated[LettersQuery, Depends(Query(LettersQuery))]
) -> Response:
    """List the newest dead letters, also those that were sent again."""
    async with deps.gates.replays.turn(caller.project):
        found = await _read(deps)
    newest = [
        ShownLetter(**one.model_dump(exclude={"value"}))
        for one in list(reversed(found.values()))[: min(query.limit, LETTERS_MAX)]
    ]
    return json(Letters(data=newest, has_more=len(found) > len(newest)))


@router.get("/{letter:path}", response_model=LetterWithValue)
async def retrieve(deps: Deps, caller: OperatorCaller, letter: LetterId) -> Response:
    """Get a dead letter with the beginning of its value."""
    async with deps.gates.replays.turn(caller.project):
        found = await _read(deps, wanted={letter})
    if letter not in found:
        raise errors.no_letter(letter)
    return json(found[letter])


@router.post("/requeue", response_model=RequeuedLetters)
async def requeue(
    request: Request,
    deps: Deps,
    caller: OperatorCaller,
    body: Annotated[RequeueRequest, Depends(JsonBody(RequeueRequest))],
) -> Response:
    """Send dead letters to their topics again, each one once unless `again` is set."""
    async with deps.gates.requeues.turn(caller.project):
        known = await _read(deps, wanted=set(body.ids))
        found = {letter_id: _judged(letter_id, known.get(letter_id), again=body.again) for letter_id in body.ids}
        to_send = {letter_id for letter_id, one in found.items() if one.result is Requeued.SENT}
        for letter_id in sorted(to_send):
            await deps.trail.record(request, caller, Action.DEAD_LETTER_REQUEUE, letter_id)
        await _send(deps, to_send)
    return json(RequeuedLetters(data=list(found.values())))


def _judged(letter_id: str, known: LetterWithValue | None, *, again: bool) -> RequeuedLetter:
    """The outcome for a letter, before or after it is sent."""
    if known is None:
        return RequeuedLetter(id=letter_id, result=Requeued.NOT_FOUND, requeued_at=None)
    result, reason = Requeued.SENT, None
    if known.requeued_at is not None and not again:
        result = Requeued.SENT_BEFORE
    elif known.is_cut:
        result = Requeued.TOO_LARGE
    elif not topics.takes_requeued(known.topic):
        result, reason = Requeued.REFUSED, topics.requeue_refusal(known.topic)
    return RequeuedLetter(id=letter_id, result=result, requeued_at=known.requeued_at, reason=reason)


async def _send(deps: Dependencies, letter_ids: set[str]) -> None:
    """Send letters to their topics, one after the other, since each holds up to a MiB; then mark them.

    Raises:
        LogUnavailable: The log does not answer; those that are marked were sent, and the next one perhaps.
    """
    left = set(letter_ids)
    async with aclosing(_letters(deps)) as letters:
        async for letter in letters:
            if not left:
                return
            if letter.id not in left or isinstance(letter, RequeueMark):
                continue
            left.remove(letter.id)
            await send_again(deps.log, letter)


async def _letters(deps: Dependencies) -> AsyncGenerator[DeadLetter | RequeueMark, None]:
    """The letters and marks that the topic has now, the oldest first."""
    async with aclosing(deps.history.entries(topics.DEAD.name, Edge(offset=0), None)) as entries:
        async for entry in entries:
            with suppress(DecodeError):
                yield dead_letters.decode(entry.headers, entry.value, entry.at_ms / 1000)


async def _read(deps: Dependencies, wanted: Container[str] | None = None) -> dict[str, LetterWithValue]:
    """The newest letters by their ids, the oldest first; or only some.

    Raises:
        LogUnavailable: The log does not answer.
    """
    found: dict[str, LetterWithValue] = {}
    async with aclosing(_letters(deps)) as letters:
        async for letter in letters:
            if wanted is not None and letter.id not in wanted:
                continue
            if not isinstance(letter, RequeueMark):
                found[letter.id] = _shown(letter)
            elif (known := found.get(letter.id)) is not None:
                found[letter.id] = known.model_copy(update={"requeued_at": int(letter.at)})
            # One more than an answer may have, which shows that there are more.
            if len(found) > LETTERS_MAX + 1:
                del found[next(iter(found))]
    return found


def _shown(letter: DeadLetter) -> LetterWithValue:
    value = letter.value or b""
    return LetterWithValue(
        id=letter.id, topic=letter.topic, stage=letter.stage, reason=letter.reason, at=int(letter.at),
        key=(letter.key or b"")[: 4 * KEY_CHARS_SHOWN].decode(errors="replace")[:KEY_CHARS_SHOWN],
        bytes=letter.cut_bytes if letter.cut_bytes is not None else len(value), requeued_at=None,
        is_cut=letter.cut_bytes is not None, value=value[:VALUE_BYTES_SHOWN].decode(errors="replace"),
    )  # fmt: skip
