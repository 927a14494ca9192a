"""The owner of a store: the log whose records name its objects.

The api deletes objects without a record after a day, so it must notice a log that does not know the objects of its
store: another Kafka, an older copy of the log, or a new folder where a disk is not mounted. The object `owner` has
the identity of the topic `tidemill.files`, and its end when an api last noted it. The first log that finds a new
store owns it, and so does the first one after an operator has replaced the object by an empty one.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from tidemill.schemas import decoded, ids
from tidemill.schemas.ports import NotFound, Store, once, read_all

KEY: Final = "owner"

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
    """Whether the installation must write nothing there."""

    def __str__(self) -> str:
        return f"{self.text}: {self.fix}"


class StoreGone(OSError):
    """The store has none of its objects."""

    def __init__(self) -> None:
        super().__init__(f"the store has no object `{KEY}`: it is not mounted, or was emptied")


_EMPTY: Final = f"put an empty object `{KEY}` there"
MISSING: Final = Fault(
    f"the store has no object `{KEY}`, although the log has files: it is not mounted, or was emptied",
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


class StoreOwner:
    """Whether the log of this process owns its store; `origin` reads the log to its end."""

    def __init__(self, store: Store, origin: Callable[[], Awaitable[Origin]]) -> None:
        self._store = store
        self._origin = origin
        self.fault: Fault | None = None
        """Why it does not, as of the last check."""

    @property
    def is_foreign(self) -> bool:
        """Whether this process must write nothing there."""
        return self.fault is not None and self.fault.is_foreign

    async def check(self, *, marks: bool) -> None:
        """Become the owner of a new store, and compare; `marks` notes how far the log is.

        Raises:
            OSError: The store or the log does not answer.
        """
        # Before the log is read: another api may note a later offset meanwhile.
        content = await content_of(self._store)
        origin = await self._origin()
        fault = judge(content, origin)
        if fault is None and content is None:
            if not await self._store.create(KEY, msgspec.json.encode(origin)):
                fault = judge(await content_of(self._store), origin)
        elif fault is None and (marks or not content):
            await self._write(origin)
        elif fault is CONTESTED and fault is not self.fault:
            # The log will have grown past the offset before an operator reads of this.
            await self._write(msgspec.structs.replace(origin, is_contested=True))
        if fault is not self.fault:
            if fault is None:
                log.warning("this log owns the store again")
            else:
                log.error("%s", fault)
        self.fault = fault

    async def _write(self, origin: Origin) -> None:
        await self._store.write(KEY, once(msgspec.json.encode(origin)))
