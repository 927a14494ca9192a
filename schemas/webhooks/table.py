"""Tables of endpoints, deliveries and health, folded from their topics; equal records give equal tables."""

import heapq
import logging
from bisect import bisect_left, insort
from collections import defaultdict
from typing import Final

from tidemill.bounded_dict import BoundedDict
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import HEALTH, Cursor, Delivery, EndpointRecord, Health, State

KEPT_MAX: Final = 100
"""Ended deliveries of an endpoint that the log keeps."""
KEYS_MAX: Final = 10_000
"""Endpoints whose last offset a process remembers, for its own records on their way."""
FORGOTTEN_MAX: Final = 10_000
"""Forgotten deliveries whose places a process remembers, for clients that page through a list meanwhile."""

Place = tuple[int, str]
"""The place of a delivery in the list of its endpoint: when it was created, and its id."""

_log = logging.getLogger(__name__)


class Endpoints:
    """The endpoints of all projects."""

    def __init__(self) -> None:
        self._records: dict[str, EndpointRecord] = {}
        self._of_project: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._places: dict[str, int] = {}
        """Offsets of records that this process has written, by key, until it reads them."""
        self._applied: BoundedDict[str, int] = BoundedDict(KEYS_MAX)
        """The offsets of the last records, by key."""

    def get(self, endpoint_id: str) -> EndpointRecord | None:
        """An endpoint."""
        return self._records.get(endpoint_id)

    def of(self, project: str) -> list[EndpointRecord]:
        """The endpoints of a project, the oldest first, without that of its callbacks."""
        records = (self._records[each] for each in self._of_project.get(project, ()))
        return [record for record in records if not record.is_callback]

    def put(self, key: str, value: bytes | None, offset: int) -> None:
        """Apply a record that this process has just written, unless it has read that one or a later one meanwhile.

        Older ones that it reads afterwards are ignored.
        """
        if offset > self._applied.get(key, -1):
            self.apply(key, value, offset)
            self._places[key] = offset

    def apply(self, key: str, value: bytes | None, offset: int = -1) -> None:
        """Apply a record of the topic."""
        if (written := self._places.get(key)) is not None:
            if offset < written:
                return
            del self._places[key]
        self._applied[key] = offset
        if value is None:
            if (gone := self._records.pop(key, None)) is not None:
                self._of_project[gone.project].pop(key)
            return
        try:
            record = messages.decode_endpoint(value)
        except DecodeError:
            _log.warning("record %d of the webhook endpoints cannot be decoded", offset)
            return
        self._records[key] = record
        self._of_project[record.project][key] = None


class Deliveries:
    """The deliveries, with each endpoint's health."""

    def __init__(self) -> None:
        self.cursor = 0
        """See `messages.Cursor`."""
        self._deliveries: dict[str, Delivery] = {}
        self._of_endpoint: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """By endpoint, in the order of their last records."""
        self._places: defaultdict[tuple[str, State], list[Place]] = defaultdict(list)
        """By endpoint and state, sorted."""
        self._forgotten: BoundedDict[str, tuple[str, int]] = BoundedDict(FORGOTTEN_MAX)
        """Endpoint and creation time of forgotten deliveries, by their ids."""
        self._health: dict[str, Health] = {}

    def get(self, delivery_id: str) -> Delivery | None:
        """A delivery."""
        return self._deliveries.get(delivery_id)

    def of(self, endpoint_id: str) -> list[Delivery]:
        """The deliveries to an endpoint, in the order of their last records."""
        return [self._deliveries[each] for each in self._of_endpoint.get(endpoint_id, ())]

    def page(self, endpoint_id: str, state: State | None, after: Place | None, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries to an endpoint, the newest first, from below the place `after`.

        It looks at no others, since an endpoint may have any number of them.
        """
        found: list[Place] = []
        for one in State if state is None else (state,):
            places = self._places.get((endpoint_id, one), [])
            end = len(places) if after is None else bisect_left(places, after)
            found += places[max(0, end - limit) : end]
        return [self._deliveries[each] for _, each in heapq.nlargest(limit, found)]

    def created_at(self, endpoint_id: str, delivery_id: str) -> int | None:
        """When a delivery to an endpoint was created, also if it was forgotten lately; None without one."""
        if (known := self._deliveries.get(delivery_id)) is not None:
            owner, at = known.endpoint_id, known.created_at
        else:
            owner, at = self._forgotten.get(delivery_id, ("", 0))
        return at if owner == endpoint_id else None

    def endpoints(self) -> set[str]:
        """The endpoints with a delivery or a health record."""
        return {*(each for each, found in self._of_endpoint.items() if found), *self._health}

    def health(self, endpoint_id: str) -> Health | None:
        """The health of an endpoint; None if it has not failed yet."""
        return self._health.get(endpoint_id)

    def apply(self, key: str, value: bytes | None, offset: int = -1) -> None:
        """Apply a record of the topic."""
        if value is None:
            self._health.pop(key.removeprefix(HEALTH), None)
            if (gone := self._deliveries.pop(key, None)) is not None:
                self._of_endpoint[gone.endpoint_id].pop(key)
                self._move(gone, None)
                self._forgotten[key] = (gone.endpoint_id, gone.created_at)
            return
        try:
            record = messages.decode_state(value)
        except DecodeError:
            _log.warning("record %d of the webhook deliveries cannot be decoded", offset)
            return
        if isinstance(record, Cursor):
            self.cursor = record.offset
        elif isinstance(record, Health):
            self._health[record.endpoint_id] = record
        else:
            self._move(self._deliveries.get(record.id), record)
            self._deliveries[record.id] = record
            of_endpoint = self._of_endpoint[record.endpoint_id]
            of_endpoint.pop(record.id, None)
            of_endpoint[record.id] = None

    def _move(self, old: Delivery | None, new: Delivery | None) -> None:
        """Give a delivery its new place."""
        before, now = _listed(old), _listed(new)
        if before == now:
            return
        if before is not None:
            places = self._places[before[0]]
            del places[bisect_left(places, before[1])]
            if not places:
                del self._places[before[0]]
        if now is not None:
            insort(self._places[now[0]], now[1])


def _listed(delivery: Delivery | None) -> tuple[tuple[str, State], Place] | None:
    if delivery is None:
        return None
    return (delivery.endpoint_id, delivery.state), (delivery.created_at, delivery.id)


def is_disabled(record: EndpointRecord, health: Health | None) -> bool:
    """Whether an endpoint was disabled for its failures, and has not been changed since."""
    return health is not None and health.disabled_at is not None and record.enabled_at < health.disabled_at


def is_ended(delivery: Delivery) -> bool:
    """Whether no further attempt follows."""
    return delivery.state is not State.PENDING
