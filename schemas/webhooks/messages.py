"""The records of webhooks, and the endpoint and the event as the API shows them.

| topic | key | value |
|---|---|---|
| `tidemill.webhooks` | endpoint id | `EndpointRecord`; a tombstone deletes the endpoint |
| `tidemill.events` | endpoint id | `Due`, `Resend`, `Started` |
| `tidemill.deliveries` | delivery id | `Delivery`; a tombstone forgets it |
| `tidemill.deliveries` | `health/` and an endpoint id | `Health` |
| `tidemill.deliveries` | `cursor` | `Cursor` |
"""

import hashlib
import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field, StringConstraints

from tidemill.schemas.bounds import Id, Name, Number, Real, Shape, Size, Time, Url, Word
from tidemill.schemas.log.codec import Decoder, decoder
from tidemill.schemas.log.messages import WRAPPED_CHARS_MAX
from tidemill.schemas.traces import Traceparent

SECRETS_MAX: Final = 2
"""Signing secrets of an endpoint: the current one, and one that is still valid after a rotation."""
CURSOR: Final = "cursor"
HEALTH: Final = "health/"
_DIGEST_BYTES: Final = 16


class EventType(StrEnum):
    """The types of events: a batch has reached one of its final states."""

    COMPLETED = "batch.completed"
    FAILED = "batch.failed"
    EXPIRED = "batch.expired"
    CANCELLED = "batch.cancelled"


class _Message(Shape):
    v: Literal[1] = 1


class Endpoint(Shape):
    """A webhook endpoint in OpenAI's shape, without its secret. Times are Unix seconds."""

    id: Id
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: Time
    event_types: Annotated[tuple[EventType, ...], Field(max_length=4)]
    name: Name
    url: Url
    signing_secret_hint: Word
    updated_at: Time


class WrappedSecret(Shape):
    """A signing secret, encrypted with a key of the key file."""

    id: Id
    wrapped_by: Name
    """The wrapping key."""
    wrapped: Annotated[str, StringConstraints(max_length=WRAPPED_CHARS_MAX)]
    """The encrypted secret in base64."""
    expires_at: Time | None = None
    """When it stops being valid; None for the current one."""


class EndpointRecord(_Message):
    """An endpoint, its project and its secrets."""

    project: Name
    endpoint: Endpoint
    secrets: Annotated[tuple[WrappedSecret, ...], Field(min_length=1, max_length=SECRETS_MAX)]
    enabled_at: Time
    """When it was created or last changed, which enables it again if it was disabled before."""

    @property
    def is_callback(self) -> bool:
        """Whether it stands for the callbacks of the project's batches, which name their own URLs."""
        return not self.endpoint.url


class Event(Shape):
    """The news that a batch has ended."""

    id: Id
    type: EventType
    created_at: Time
    """When the batch ended."""
    batch_id: Id

    @property
    def body(self) -> bytes:
        """The event in OpenAI's shape, the same bytes each time."""
        about = {"id": self.id, "object": "event", "created_at": self.created_at, "type": self.type}
        return orjson.dumps({**about, "data": {"id": self.batch_id}})


class Due(_Message):
    """An event has to go to an endpoint."""

    kind: Literal["due"] = "due"
    project: Name
    endpoint_id: Id
    event: Event
    url: Url | None = None
    """The `callback_url` of the batch; None for the endpoint's own URL."""
    is_test: bool = False
    """Whether a client asked for it; then there is one attempt."""
    traceparent: Traceparent | None = None
    """The trace of the batch."""


class Resend(_Message):
    """A client asked to send an ended delivery again."""

    kind: Literal["resend"] = "resend"
    endpoint_id: Id
    delivery_id: Id


class Started(_Message):
    """A process owns the partition; the record starts its work."""

    kind: Literal["started"] = "started"


EventRecord = Annotated[Due | Resend | Started, Field(discriminator="kind")]


class State(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Attempt(Shape):
    """A call to an endpoint."""

    at: Time
    seconds: Annotated[Real, Field(ge=0)]
    status_code: Annotated[int, Field(ge=100, le=999)] | None = None
    """The status of the reply; None without one."""
    error: Word | None = None
    """Why there was no reply: `timeout`, `refused_address`, `connection`, `secret`, `internal`."""


class Delivery(_Message):
    """The delivery of an event to an endpoint."""

    kind: Literal["delivery"] = "delivery"
    id: Id
    project: Name
    endpoint_id: Id
    event: Event
    url: Url | None = None
    """See `Due`."""
    is_test: bool = False
    traceparent: Traceparent | None = None
    state: State = State.PENDING
    place: Size = 0
    """The offset of its event, or of the request to resend it: the order within a batch."""
    created_at: Time
    expires_at: Time
    """No attempt begins after this."""
    attempts: Number = 0
    attempts_before: Number = 0
    """Those before a client asked to send it again."""
    next_at: Time | None = None
    """When the next attempt is due; None after the end."""
    last: Attempt | None = None
    ended_at: Time | None = None


class Health(_Message):
    """The endpoint's failures; there is no record before the first."""

    kind: Literal["health"] = "health"
    project: Name
    endpoint_id: Id
    failing_since: Time | None = None
    """The first failure after the last success."""
    counted_at: Time | None = None
    """The failure up to which `failing_seconds` counts."""
    failing_seconds: Size = 0
    """How long attempts have failed, without the times of none."""
    disabled_at: Time | None = None


class Cursor(_Message):
    """The offset in `tidemill.batches` before which every event is in `tidemill.events`."""

    kind: Literal["cursor"] = "cursor"
    offset: Size


StateRecord = Annotated[Delivery | Health | Cursor, Field(discriminator="kind")]

decode_endpoint: Decoder[EndpointRecord] = decoder(EndpointRecord)
decode_event: Decoder[EventRecord] = decoder(EventRecord)
decode_state: Decoder[StateRecord] = decoder(StateRecord)


def event_of(batch_id: str, status: str, ended_at: int) -> Event:
    """The event that a batch has ended; its id is the same each time."""
    kind = EventType(f"batch.{status}")
    return Event(id=f"evt_{_digest(batch_id, kind)}", type=kind, created_at=ended_at, batch_id=batch_id)


def delivery_id(endpoint_id: str, event_id: str) -> str:
    """The id of the delivery of an event to an endpoint; the same each time."""
    return f"whd_{_digest(endpoint_id, event_id)}"


def is_delivery_id(text: str) -> bool:
    """Whether the text has the form of a delivery's id."""
    return re.fullmatch("whd_[0-9a-f]{32}", text) is not None


def _digest(*parts: Any) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()
