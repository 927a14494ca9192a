"""Webhook endpoints and deliveries, as this process knows them, and the records that change them."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from tidemill.api import errors
from tidemill.api.changes import ChangeEvent
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.ports import Clock, Sender
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.webhooks import messages, signature
from tidemill.schemas.webhooks.addresses import Network, UrlRefused, checked_url
from tidemill.schemas.webhooks.messages import (
    Delivery,
    Due,
    Endpoint,
    EndpointRecord,
    Event,
    EventType,
    Resend,
    WrappedSecret,
)
from tidemill.schemas.webhooks.table import Deliveries, Endpoints, is_ended
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.sealing.wrapping import KeyUnavailable

SEEN_SECONDS_MAX: Final = 1.0
"""How long to wait for an object that another process may just have created."""
TEST_SECONDS_MAX: Final = 25.0
"""How long to wait for the reply to a test: the call itself takes up to 15 s."""
OVERLAP_SECONDS: Final = 86_400
"""How long an old secret stays valid, if the client asks for it."""

CALLBACK: Final = "callback"
"""The id, in a path, of the endpoint that stands for the callbacks of the project's batches."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Change:
    """New values of an endpoint."""

    name: str
    url: str
    event_types: tuple[EventType, ...]


class Webhooks:
    """Reads are scoped by project: endpoints of other projects do not exist for them."""

    def __init__(
        self, sender: Sender, wrapped: WebhookSecrets, allowed: tuple[Network, ...], clock: Clock
    ) -> None:
        """Know nothing yet; followers fill `endpoints` and `deliveries` (see `waking`)."""
        self.allowed = allowed
        self.endpoints = Endpoints()
        self.deliveries = Deliveries()
        self.changes = ChangeEvent()
        self._sender = sender
        self._wrapped = wrapped
        self._clock = clock

    def waking(self, apply: Callable[[str, bytes | None, int], None]) -> Callable[[str, bytes | None, int], None]:
        """A function that applies a record, and wakes those who wait for its object."""

        def applied(key: str, value: bytes | None, offset: int) -> None:
            apply(key, value, offset)
            self.changes.notify(key)

        return applied

    async def endpoint(self, project: str, endpoint_id: str) -> EndpointRecord:
        """An endpoint of a project.

        Raises:
            ApiError: 404, there is none.
        """
        wanted = ids.callback_endpoint_id(project) if endpoint_id == CALLBACK else endpoint_id

        def look() -> EndpointRecord | None:
            found = self.endpoints.get(wanted)
            return found if found is not None and found.project == project else None

        seconds = SEEN_SECONDS_MAX if ids.is_endpoint_id(wanted) else 0.0
        found = look() or await self.changes.wait_for(wanted, look, seconds_max=seconds)
        if found is None:
            raise errors.no_endpoint(endpoint_id)
        return found

    async def delivery(self, endpoint_id: str, delivery_id: str) -> Delivery:
        """A delivery to an endpoint.

        Raises:
            ApiError: 404, there is none.
        """
        found = await self.changes.wait_for(
            delivery_id,
            lambda: self.deliveries.get(delivery_id),
            seconds_max=SEEN_SECONDS_MAX if messages.is_delivery_id(delivery_id) else 0.0,
        )
        if found is None or found.endpoint_id != endpoint_id:
            raise errors.no_delivery(delivery_id)
        return found

    async def place(self, endpoint_id: str, delivery_id: str) -> tuple[int, str]:
        """The place in the list of an endpoint's deliveries of one that is known, or was lately.

        Raises:
            ApiError: 400, there is none.
        """
        at = await self.changes.wait_for(
            delivery_id,
            lambda: self.deliveries.created_at(endpoint_id, delivery_id),
            seconds_max=SEEN_SECONDS_MAX if messages.is_delivery_id(delivery_id) else 0.0,
        )
        if at is None:
            raise errors.unknown_cursor(delivery_id)
        return at, delivery_id

    async def create(self, project: str, endpoint_id: str, change: Change) -> tuple[EndpointRecord, str]:
        """Create an endpoint with a new id; returns it and its secret.

        Raises:
            ApiError: 409, the installation has no key file.
            LogUnavailable: The log does not answer.
        """
        now, secret = int(self._clock()), signature.new_secret()
        endpoint = Endpoint(
            id=endpoint_id, created_at=now, updated_at=now, signing_secret_hint=signature.hint(secret),
            **vars(change),
        )  # fmt: skip
        kept = (await self._wrap(project, endpoint_id, secret),)
        record = EndpointRecord(project=project, endpoint=endpoint, secrets=kept, enabled_at=now)
        await self._put(endpoint_id, record)
        return record, signature.shown(secret)

    async def update(self, record: EndpointRecord, change: Change) -> EndpointRecord:
        """Change an endpoint; that enables it, even if nothing changes, or the clock is behind that of webhooks.

        Raises:
            LogUnavailable: The log does not answer.
        """
        now, endpoint = int(self._clock()), record.endpoint.model_copy(update=vars(change))
        if endpoint != record.endpoint:
            endpoint = endpoint.model_copy(update={"updated_at": now})
        health = self.deliveries.health(endpoint.id)
        enabled_at = max(now, (health and health.disabled_at) or 0)
        changed = record.model_copy(update={"endpoint": endpoint, "enabled_at": enabled_at})
        await self._put(endpoint.id, changed)
        return changed

    async def rotate(self, record: EndpointRecord, *, keeps_old: bool) -> tuple[EndpointRecord, str]:
        """Give an endpoint a new secret; with `keeps_old` the present one stays valid for `OVERLAP_SECONDS`.

        Raises:
            ApiError: 409, the installation has no key file.
            LogUnavailable: The log does not answer.
        """
        now, secret = int(self._clock()), signature.new_secret()
        fresh = await self._wrap(record.project, record.endpoint.id, secret)
        old = record.secrets[0].model_copy(update={"expires_at": now + OVERLAP_SECONDS})
        shown = {"updated_at": now, "signing_secret_hint": signature.hint(secret)}
        changed = record.model_copy(
            update={
                "endpoint": record.endpoint.model_copy(update=shown),
                "secrets": (fresh, old) if keeps_old else (fresh,),
            }
        )
        await self._put(record.endpoint.id, changed)
        return changed, signature.shown(secret)

    async def rotate_callback(self, project: str, *, keeps_old: bool) -> tuple[EndpointRecord, str]:
        """Give the callbacks of a project a new secret, or their first one; see `rotate`."""
        endpoint_id = ids.callback_endpoint_id(project)
        if (known := self.endpoints.get(endpoint_id)) is not None:
            return await self.rotate(known, keeps_old=keeps_old)
        return await self.create(project, endpoint_id, Change(name=CALLBACK, url="", event_types=()))

    async def check_callback(self, project: str, url: str) -> None:
        """Check the `callback_url` of a new batch.

        Raises:
            ApiError: 400, a webhook must not have it, or the project has no secret for callbacks.
        """
        try:
            checked_url(url, self.allowed)
        except UrlRefused as error:
            raise errors.invalid_param("callback_url", f"{error}.") from error
        try:
            await self.endpoint(project, CALLBACK)
        except ApiError as error:
            fault = (
                "the project has no secret to sign callbacks with. `tidemill webhooks rotate callback` makes one, "
                "or POST /v1/webhook_endpoints/callback/rotate_secret."
            )
            raise errors.invalid_param("callback_url", fault, code="no_callback_secret") from error

    async def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint; its deliveries end.

        Raises:
            LogUnavailable: The log does not answer.
        """
        await self._put(endpoint_id, None)

    async def test(self, record: EndpointRecord, kind: EventType) -> Delivery | None:
        """Send a sample event once; None if there is no result in time.

        Raises:
            LogUnavailable: The log does not answer.
        """
        event = Event(
            id=f"evt_test_{secrets.token_hex(12)}", type=kind, created_at=int(self._clock()),
            batch_id=f"batch_test_{secrets.token_hex(12)}",
        )  # fmt: skip
        endpoint_id = record.endpoint.id
        due = Due(project=record.project, endpoint_id=endpoint_id, event=event, is_test=True)
        await self._sender.send(topics.EVENTS.name, endpoint_id, codec.encode(due))
        return await self._ended(messages.delivery_id(endpoint_id, event.id))

    async def resend(self, delivery: Delivery) -> None:
        """Send an ended delivery again.

        Raises:
            LogUnavailable: The log does not answer.
        """
        wish = Resend(endpoint_id=delivery.endpoint_id, delivery_id=delivery.id)
        await self._sender.send(topics.EVENTS.name, delivery.endpoint_id, codec.encode(wish))

    async def _ended(self, delivery_id: str) -> Delivery | None:
        def look() -> Delivery | None:
            found = self.deliveries.get(delivery_id)
            return found if found is not None and is_ended(found) else None

        return await self.changes.wait_for(delivery_id, look, seconds_max=TEST_SECONDS_MAX)

    async def _wrap(self, project: str, endpoint_id: str, secret: bytes) -> WrappedSecret:
        try:
            return await self._wrapped.wrap(project, endpoint_id, secret)
        except KeyUnavailable as error:
            raise errors.no_key_file() from error

    async def _put(self, endpoint_id: str, record: EndpointRecord | None) -> None:
        value = None if record is None else codec.encode(record)
        offset = await self._sender.send(topics.WEBHOOKS.name, endpoint_id, value)
        self.endpoints.put(endpoint_id, value, offset)
