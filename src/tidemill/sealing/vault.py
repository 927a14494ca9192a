"""The keys of batches, read from `tidemill.secrets`.

| key | value |
|---|---|
| batch id, `/` and a key's id | `Secret`: the wrapped key; a tombstone destroys it |
| batch id | `Erasure`: the batch is deleted, and its keys are void |

The process that seals a batch's first record creates its key, and appends it to the log before the record. Two
processes may create a key each, so a sealed record names its key. A process that does not know the key of a record
reads the topic up to its end; if the key is still missing, it has been destroyed.
"""

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tidemill.bounded_dict import BoundedDict
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import Secret
from tidemill.schemas.ports import Sender
from tidemill.sealing.cipher import Cipher, Damaged, new_key
from tidemill.sealing.sqlite import Secrets
from tidemill.sealing.wrapping import FileWrapper, KeyUnavailable

log = logging.getLogger(__name__)

CIPHERS_MAX: Final = 4096
"""Unwrapped keys that a process caches."""
DESTROYED_MAX: Final = 100_000
"""Batches with destroyed keys that a process remembers, for records that are still in transit."""
KEY_ID_BYTES: Final = 8
NEVER: Final = float("-inf")


class NoKey(Exception):
    """The key does not exist, or was destroyed, which made all data that it sealed unreadable."""


class Vault:
    """The keys that this process can use."""

    def __init__(
        self,
        sender: Sender | None,
        *,
        wrapper: FileWrapper | None = None,
        seals: bool = False,
        caught_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Start without keys.

        Without a sender it creates and destroys no keys; without a wrapper it can neither seal nor open. With
        `seals` it creates a key for a batch without one. `caught_up` waits until `apply` has received all present
        records of the topic.
        """
        self._sender = sender
        self._wrapper = wrapper
        self._seals = seals
        self._caught_up = caught_up
        self._secrets = Secrets()
        self._erased: dict[str, int] = {}
        """When each deleted batch was deleted, Unix seconds."""
        self._destroyed: BoundedDict[str, None] = BoundedDict(DESTROYED_MAX)
        self._ciphers: BoundedDict[tuple[str, str], Cipher] = BoundedDict(CIPHERS_MAX)
        self._creating: dict[str, asyncio.Lock] = {}

    def apply(self, key: str, value: bytes | None, offset: int = -1) -> None:
        """Apply a record of the topic."""
        batch_id, _, key_id = key.partition("/")
        if key_id:
            self._apply_key(batch_id, key_id, value)
        elif value is None:
            self._erased.pop(batch_id, None)
        else:
            try:
                self._erased[batch_id] = codec.decode_erasure(value).at
            except DecodeError:
                log.warning("record %d of the secrets cannot be decoded", offset)

    def is_erased(self, batch_id: str) -> bool:
        """Whether a batch is deleted."""
        return batch_id in self._erased

    def has_key(self, batch_id: str) -> bool:
        """Whether a batch has a key."""
        return bool(self._secrets.of(batch_id))

    def is_at_hand(self, batch_id: str, key_id: str) -> bool:
        """Whether `cipher` returns without waiting."""
        return (batch_id, key_id) in self._ciphers or batch_id in self._erased

    async def catch_up(self) -> None:
        """Apply all keys that the topic has now."""
        if self._caught_up is not None:
            await self._caught_up()

    async def sealing_cipher(self, batch_id: str, project: str | None = None) -> Cipher | None:
        """The cipher to seal a batch's bytes with; None if the batch is not sealed.

        With a project, which is that of the batch, the call may create the batch's first key.

        Raises:
            NoKey: The batch is deleted.
            OSError: Its key cannot be unwrapped, or sent, now; or is lost, which an operator may mend.
        """
        if batch_id in self._erased:
            raise NoKey(f"{batch_id} is deleted")
        if known := self._secrets.of(batch_id):
            try:
                return await self.cipher(batch_id, next(iter(known)))
            except NoKey as error:
                if batch_id in self._erased:
                    raise
                raise KeyUnavailable(str(error)) from error
        if project is None and batch_id in self._destroyed:
            # The result of a call in flight must neither be stored in clear nor count as stored.
            raise KeyUnavailable(f"the keys of {batch_id} are destroyed")
        if project is None or not self._seals:
            return None
        try:
            async with self._creating.setdefault(batch_id, asyncio.Lock()):
                if not self._secrets.of(batch_id):
                    await self._create(batch_id, project)
        finally:
            self._creating.pop(batch_id, None)
        return await self.sealing_cipher(batch_id)

    async def cipher(self, batch_id: str, key_id: str) -> Cipher:
        """The cipher to open data that was sealed with a key of a batch.

        Raises:
            NoKey: The key is destroyed.
            KeyUnavailable: It cannot be unwrapped now.
        """
        if batch_id in self._erased:
            raise NoKey(f"{batch_id} is deleted, and its key with it")
        if (cipher := self._ciphers.use((batch_id, key_id))) is not None:
            return cipher
        if key_id not in self._secrets.of(batch_id):
            await self.catch_up()
        if (value := self._secrets.of(batch_id).get(key_id)) is None:
            raise NoKey(f"the key {key_id} of {batch_id} is destroyed")
        try:
            return await self._unwrap(batch_id, key_id, value)
        except (DecodeError, Damaged, ValueError) as error:
            raise NoKey(f"the key {key_id} of {batch_id} cannot be read") from error

    async def destroy(self, batch_id: str) -> None:
        """Destroy all keys of a batch; once the broker has compacted the log, no process can open its data.

        Raises:
            OSError: The log does not answer.
        """
        await self.catch_up()
        await self.destroy_known(batch_id)

    async def destroy_known(self, batch_id: str) -> None:
        """Destroy the keys of a batch that this process has read so far.

        Raises:
            OSError: The log does not answer.
        """
        for key_id in list(self._secrets.of(batch_id)):
            await self._drop(_place(batch_id, key_id))

    async def destroy_due_keys(self, made_before: float, is_over: Callable[[str], bool]) -> None:
        """Destroy the keys of deleted batches, and keys so old that the log has no more records of their batches.

        It looks at all keys and lets others run in between. `made_before` is the latest creation of such old
        keys, Unix seconds; those of batches not `is_over` stay.

        Raises:
            OSError: The log does not answer.
        """
        number, is_old = 0, True
        while page := self._secrets.after(number):
            for number, batch_id, key_id, value in page:  # noqa: B007  the next page begins there
                # Keys are in log order, so all keys after the first young one are young.
                is_old = is_old and (made_at := _made_at(value)) < made_before
                if batch_id in self._erased or (is_old and made_at > NEVER and is_over(batch_id)):
                    await self._drop(_place(batch_id, key_id))
            await asyncio.sleep(0)
        for batch_id in [batch_id for batch_id, at in self._erased.items() if at < made_before]:
            await self._drop(batch_id)

    async def _drop(self, key: str) -> None:
        assert self._sender is not None
        await self._sender.send(topics.SECRETS.name, key, None)
        self.apply(key, None)

    def _apply_key(self, batch_id: str, key_id: str, value: bytes | None) -> None:
        if value is not None:
            self._secrets.put(batch_id, key_id, value)
            self._destroyed.pop(batch_id, None)
            return
        self._ciphers.pop((batch_id, key_id), None)
        if self._secrets.drop(batch_id, key_id) and not self._secrets.of(batch_id):
            self._destroyed[batch_id] = None

    async def _create(self, batch_id: str, project: str) -> None:
        if self._wrapper is None or self._sender is None:
            raise KeyUnavailable("no key file is set")
        key_id, key = secrets.token_hex(KEY_ID_BYTES), new_key()
        name, wrapped = await self._wrapper.wrap(project, _place(batch_id, key_id), key)
        secret = Secret(
            project=project, at=int(time.time()), wrapped_by=name, wrapped=base64.b64encode(wrapped).decode()
        )
        value = codec.encode(secret)
        await self._sender.send(topics.SECRETS.name, _place(batch_id, key_id), value)
        self._apply_key(batch_id, key_id, value)
        self._remember(batch_id, key_id, key)

    async def _unwrap(self, batch_id: str, key_id: str, value: bytes) -> Cipher:
        if self._wrapper is None:
            raise KeyUnavailable("no key file is set")
        secret = codec.decode_secret(value)
        wrapped = base64.b64decode(secret.wrapped, validate=True)
        place = _place(batch_id, key_id)
        key = await self._wrapper.unwrap(secret.project, place, secret.wrapped_by, wrapped)
        return self._remember(batch_id, key_id, key)

    def _remember(self, batch_id: str, key_id: str, key: bytes) -> Cipher:
        cipher = self._ciphers[batch_id, key_id] = Cipher(key, key_id)
        return cipher


def _place(batch_id: str, key_id: str) -> str:
    return f"{batch_id}/{key_id}"


def _made_at(value: bytes) -> float:
    """When a key was created, Unix seconds; `NEVER` if the record cannot be decoded."""
    try:
        return codec.decode_secret(value).at
    except DecodeError:
        return NEVER
