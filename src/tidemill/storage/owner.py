"""The owner of a store: the log whose records name its objects.

The api deletes objects without a record after a day, so it must notice a log that does not know the objects of its
store: another Kafka, an older copy of the log, or a new folder where a disk is not mounted. The object `owner` has
the identity of the topic `tidemill.files`, and its end when an api last noted it. A log becomes the owner of
a store without that object if the store has the log's files, or no file and the log has none either; and of any
store once an operator has replaced the object by an empty one.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from tidemill.schemas import decoded, ids
from tidemill.schemas.log.part import FILES_PREFIX
from tidemill.schemas.ports import Monotonic, NotFound, Store, once, read_all

KEY: Final = "owner"
FOUND_SECONDS: Final = 2.0
"""How long a look at the object counts, so that not each missing object needs one."""
_ANY: Final = 1 << 62
"""End of a log for a process that does not know it."""

log = logging.getLogger(__name__)


class Origin(msgspec.Struct, frozen=True):
    """A log, as its topic `tidemill.files` shows it, and the content of the object `owner`."""

    identity: str
    """See `kafka.connection.topic_identities`."""
    files: int
    """Offset of the topic's next record."""
    is_contested: bool = False
    """Whether an older or another copy of this log was used with the store."""


@dataclass(frozen=True)
class Fault:
    """Why a log does not own a store."""

    text: str
    fix: str
    is_foreign: bool = True
    """Whether the store may lack the objects of the log, so that the api takes nothing to store."""

    def __str__(self) -> str:
        return f"{self.text}: {self.fix}"


class StoreFault(OSError):
    """The log does not own the store, so an object may be missing for that alone, and none is deleted."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)


_EMPTY: Final = f"put an empty object `{KEY}` there"
UNCHECKED: Final = Fault("the store has not been compared with the log yet", "both must answer")
MISSING: Final = Fault(
    f"the store has no object `{KEY}`, and not the files of the log: it is not mounted, or was emptied",
    f"mount or restore it; to go on with what it has, {_EMPTY}",
)
FOREIGN: Final = Fault(
    "the store belongs to another log",
    "give this installation a bucket, a prefix or a folder of its own; "
    f"if that log is gone for good, {_EMPTY}, and a day later the objects that this log does not know are deleted",
)
CONTESTED: Final = Fault(
    "the store has files that are newer than this log: it was restored, or another copy of it uses the store; "
    "nothing is deleted",
    "give a copy a store of its own; "
    f"then {_EMPTY}, and a day later the objects that this log does not know are deleted",
    is_foreign=False,
)

_decoder: Final = msgspec.json.Decoder(Origin)


def judge(content: bytes | None, origin: Origin) -> Fault | None:
    """Why a log does not own a store, given the object `owner`, None without one, and the log as it was later."""
    if content is None:
        return MISSING if origin.files else None
    if not content.strip():
        return None
    known = decoded(_decoder, content)
    if known is None or not ids.is_same_topic(known.identity, origin.identity):
        return FOREIGN
    return CONTESTED if known.is_contested or known.files > origin.files else None


async def content_of(store: Store) -> bytes | None:
    """The object `owner`; None without one.

    Raises:
        OSError: The store failed.
    """
    try:
        return await read_all(store.read(KEY))
    except NotFound:
        return None


class Guard:
    """Whether the log owns the store of a process that reads only the object `owner`."""

    def __init__(
        self, store: Store, identity: Callable[[], Awaitable[str]], monotonic: Monotonic = time.monotonic
    ) -> None:
        """Look at nothing yet; `identity` returns that of the log."""
        self._store = store
        self._identity_of_log = identity
        self._monotonic = monotonic
        self._identity = ""
        self._fault: Fault | None = None
        self._found_until = -math.inf

    async def check(self, *, deletes: bool) -> None:
        """Return if an object is not missing for another fault, or may be deleted.

        Raises:
            StoreFault: Not so.
            OSError: The store or the log does not answer.
        """
        if self._monotonic() < self._found_until:
            return
        fault = await self._look()
        if fault is None:
            self._found_until = self._monotonic() + FOUND_SECONDS
        elif fault is not self._fault:
            log.warning("no object is deleted: %s", fault.text)
        self._fault = fault
        if fault is not None and (deletes or fault.is_foreign):
            raise StoreFault(fault)

    async def _look(self) -> Fault | None:
        content = await content_of(self._store)
        if (fault := judge(content, Origin(self._identity, _ANY))) is FOREIGN:
            # It is not known yet, or the topic was created anew.
            self._identity = await self._identity_of_log()
            fault = judge(content, Origin(self._identity, _ANY))
        return fault


class StoreOwner:
    """Whether the log of this process owns its store."""

    def __init__(
        self, store: Store, origin: Callable[[], Awaitable[Origin]], outer_keys: Callable[[], list[str]]
    ) -> None:
        """Check nothing yet.

        Args:
            store: The store.
            origin: Reads the log to its end.
            outer_keys: Returns the objects of the oldest and the newest file that the log has; none without one.
        """
        self._store = store
        self._origin = origin
        self._outer_keys = outer_keys
        self.fault: Fault | None = UNCHECKED
        """Why it does not, as of the last check."""

    @property
    def is_foreign(self) -> bool:
        """Whether the store may lack the objects of the log; see `Fault`."""
        return self.fault is not None and self.fault.is_foreign

    async def check(self, *, marks: bool) -> None:
        """Become the owner of a store without one, and compare; `marks` notes how far the log is.

        Raises:
            OSError: The store or the log does not answer.
        """
        # Before the log is read: another api may note a later offset meanwhile.
        content = await content_of(self._store)
        origin = await self._origin()
        if content is None and await self._has_files():
            await self._store.create(KEY, msgspec.json.encode(origin))
            # Another process may have been faster, of this log or of another one.
            await self.check(marks=marks)
            return
        fault = MISSING if content is None else judge(content, origin)
        if fault is None and (marks or not content):
            await self._write(origin)
        elif fault is CONTESTED and fault is not self.fault:
            # The log will have grown past the offset before an operator reads of this.
            await self._write(msgspec.structs.replace(origin, is_contested=True))
        if fault is not self.fault:
            if fault is not None:
                log.error("%s", fault)
            elif self.fault is not UNCHECKED:
                log.warning("this log owns the store again")
        self.fault = fault

    async def _has_files(self) -> bool:
        """Whether the store has the oldest and the newest file of the log; if that has none, the store has none.

        The oldest one, too: the stages may have written a newer one into a folder where no disk is mounted.
        """
        if not (keys := self._outer_keys()):
            return await anext(self._store.keys(FILES_PREFIX), None) is None
        try:
            for key in keys:
                await self._store.size(key)
        except (NotFound, StoreFault):
            return False
        return True

    async def _write(self, origin: Origin) -> None:
        await self._store.write(KEY, once(msgspec.json.encode(origin)))
