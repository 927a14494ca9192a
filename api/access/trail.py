"""Writes the audit trail, and limits how many refused keys get into it."""

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import Final

import orjson
from fastapi import Request
from pydantic import BaseModel

from tidemill.api.access.auth import Principal
from tidemill.bounded_dict import BoundedDict
from tidemill.runtime.connections import address_key
from tidemill.schemas import ids
from tidemill.schemas.bounds import METADATA_VALUE_CHARS_MAX
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import AuditRecord
from tidemill.schemas.ports import Clock, Monotonic, Sender
from tidemill.schemas.resources.audit import Action

REFUSALS_MAX: Final = 10
"""Refused keys of one address in a minute; further ones get a 429 with a `Retry-After`."""
WINDOW_SECONDS: Final = 60.0
WAIT_SECONDS_MAX: Final = 3600.0
"""A wait begins at a minute and doubles each time, up to this."""
ADDRESSES_MAX: Final = 10_000
"""Addresses with a count; above it the address that was refused longest ago loses its count."""
PENDING_MAX: Final = 100
"""Records that no request waits for, on their way to the log; further ones are dropped."""
FIELD_HEX: Final = 4
"""Hex digits of the digest of each setting in a record."""

_log = logging.getLogger(__name__)


class Trail:
    """Appends to `tidemill.audit`."""

    def __init__(self, log: Sender, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._pending: set[asyncio.Task[None]] = set()

    async def record(
        self,
        request: Request,
        caller: Principal,
        action: Action,
        target: str = "",
        *,
        owner: str | None = None,
        **detail: str,
    ) -> None:
        """Record an action on the object `target` before it is done, so that the trail misses none.

        `owner` is the object's project if it is not the caller's; its admins see the record.

        Raises:
            LogUnavailable: The log does not answer.
        """
        await self._send(self._entry(action, request, caller, target=target, owner=owner, detail=detail))

    def record_soon(
        self, request: Request, action: Action, caller: Principal | None = None, target: str = "", **detail: str
    ) -> None:
        """Record an event that grants nothing, like a refused key, without waiting for the log."""
        if len(self._pending) >= PENDING_MAX:
            _log.warning("a %s of %s is not in the audit trail: the log is slow", action, address(request))
            return
        task = asyncio.create_task(self._try(self._entry(action, request, caller, target=target, detail=detail)))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def record_settings(self, settings: BaseModel, last: AuditRecord | None) -> None:
        """Record settings that have changed since the previous process wrote `last`; secrets are masked."""
        shown = settings.model_dump(mode="json")
        fields = {name: _digest(value) for name, value in sorted(shown.items())}
        detail = {"digest": _digest(shown), "fields": "".join(value[:FIELD_HEX] for value in fields.values())}
        if last is not None and last.detail.get("digest") == detail["digest"]:
            return
        known = last.detail.get("fields", "") if last is not None else ""
        if len(known) == len(detail["fields"]):
            parts = (known[place : place + FIELD_HEX] for place in range(0, len(known), FIELD_HEX))
            pairs = zip(fields.items(), parts, strict=True)
            changed = (name for (name, value), was in pairs if value[:FIELD_HEX] != was)
            detail["changed"] = ", ".join(changed)
        await self._try(self._entry(Action.SETTINGS_CHANGE, detail=detail))

    def _entry(
        self,
        action: Action,
        request: Request | None = None,
        caller: Principal | None = None,
        *,
        target: str = "",
        owner: str | None = None,
        detail: dict[str, str] | None = None,
    ) -> AuditRecord:
        return AuditRecord(
            id=ids.new_audit_id(),
            at=int(self._clock()),
            project=owner or (caller.project if caller else ""),
            actor=caller.actor if caller else "",
            action=action,
            target=target,
            address="" if request is None else address(request),
            request_id="" if request is None else getattr(request.state, "request_id", ""),
            detail={name: text[:METADATA_VALUE_CHARS_MAX] for name, text in (detail or {}).items()},
        )

    async def _try(self, record: AuditRecord) -> None:
        try:
            await self._send(record)
        except OSError as error:
            _log.warning("%s is not in the audit trail (%s)", record.action, type(error).__name__)

    async def _send(self, record: AuditRecord) -> None:
        await self._log.send(topics.AUDIT.name, record.project, codec.encode(record))


@dataclass(slots=True)
class _Refused:
    since: float
    count: int = 0
    until: float = 0.0
    """When the address may try again."""
    wait: float = WINDOW_SECONDS


class Refusals:
    """Counts refused keys by address.

    A valid key always works: the wait is only for requests with other keys from the same address.
    """

    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._known: BoundedDict[str, _Refused] = BoundedDict(ADDRESSES_MAX)

    def count(self, source: str) -> float:
        """Count a refusal.

        Returns:
            Seconds that the address must wait; 0 if it may go on.
        """
        now = self._monotonic()
        found = self._known[source] = self._known.get(source) or _Refused(now)
        if now < found.until:
            return found.until - now
        if now >= found.since + WINDOW_SECONDS:
            calm = now >= found.until + 2 * found.wait
            found.since, found.count, found.wait = now, 0, WINDOW_SECONDS if calm else found.wait
        found.count += 1
        if found.count <= REFUSALS_MAX:
            return 0.0
        found.until = now + found.wait
        found.since = found.until
        found.count, found.wait = 0, min(2 * found.wait, WAIT_SECONDS_MAX)
        return found.until - now


def _digest(value: object) -> str:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def address(request: Request) -> str:
    """The address of the client, for IPv6 its network; behind a proxy, the address of the proxy."""
    try:
        return address_key(request.client.host if request.client is not None else "")
    except ValueError:
        return ""
