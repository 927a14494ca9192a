"""A store whose objects of batches at work are sealed: their parts, their large lines and results.

An object begins with `TMS1` and the id of its key, then come frames of 64 KiB, each sealed by itself and bound to
the object's key, its number, and whether it is the last: so a stretch is read without the rest, and what is cut,
moved or exchanged is found out. Lengths and offsets are those of the content. What has no key is stored as it is.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Final

from tidemill.schemas.log.part import LARGE_PREFIX, PARTS_PREFIX
from tidemill.schemas.ports import NotFound, Store, chained
from tidemill.sealing.cipher import SEAL_BYTES, Cipher, Damaged
from tidemill.sealing.vault import NoKey, Vault

PREFIXES: Final = (PARTS_PREFIX, LARGE_PREFIX, "intake/")
"""Under each, the batch's id is the next piece of a key."""
FRAME_BYTES: Final = 64 << 10
SEALED_BYTES: Final = FRAME_BYTES + SEAL_BYTES
_MAGIC: Final = b"TMS1"
KEY_ID_BYTES: Final = 16
HEAD_BYTES: Final = len(_MAGIC) + KEY_ID_BYTES


class SealedStore:
    """See `Store`. An object whose key is destroyed, or that is damaged, is `NotFound`: it cannot be read."""

    def __init__(self, below: Store, vault: Vault) -> None:
        self._below = below
        self._vault = vault

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Store`."""
        if (batch_id := _batch(key)) is None:
            return await self._below.write(key, chunks)
        try:
            cipher = await self._vault.sealing_cipher(batch_id)
        except NoKey:
            # A batch that is deleted meanwhile: whoever writes here is late, and nobody reads it.
            return 0
        if cipher is None:
            return await self._below.write(key, chunks)
        return content_bytes(await self._below.write(key, _sealed(cipher, key, chunks)))

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """See `Store`; what is sealed passes through this process."""
        batches = {batch_id for source in sources if (batch_id := _batch(source)) is not None}
        # Whoever wrote them has made the key, perhaps a moment ago.
        if not all(self._vault.has_key(batch_id) for batch_id in batches):
            await self._vault.catch_up()
        if not any(self._vault.has_key(batch_id) for batch_id in batches):
            return await self._below.join(key, sources)
        return await self.write(key, chained(self, sources))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `Store`."""
        cipher = None if _batch(key) is None else await self._cipher(key)
        if cipher is None:
            async for chunk in self._below.read(key, start, end):
                yield chunk
            return
        try:
            async for content in self._opened(cipher, key, start, end):
                yield content
        except Damaged as error:
            raise NotFound(key) from error

    async def size(self, key: str) -> int:
        """See `Store`."""
        size = await self._below.size(key)
        return size if _batch(key) is None or await self._cipher(key) is None else content_bytes(size)

    async def link(self, key: str, disposition: str) -> str | None:
        """See `Store`."""
        return await self._below.link(key, disposition)

    async def delete(self, key: str) -> None:
        """See `Store`."""
        await self._below.delete(key)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """See `Store`."""
        async for key in self._below.keys(prefix):
            yield key

    async def free(self) -> int | None:
        """See `Store`."""
        return await self._below.free()

    async def close(self) -> None:
        """See `Store`."""
        await self._below.close()

    async def _cipher(self, key: str) -> Cipher | None:
        """What an object is sealed with.

        Raises:
            NotFound: It is not there, or its key is not.
        """
        batch_id = _batch(key)
        assert batch_id is not None
        head = b"".join([chunk async for chunk in self._below.read(key, 0, HEAD_BYTES)])
        if not head.startswith(_MAGIC):
            return None
        try:
            return await self._vault.cipher(batch_id, head[len(_MAGIC) :].decode("ascii", "replace"))
        except NoKey as error:
            raise NotFound(key) from error

    async def _opened(self, cipher: Cipher, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        number = start // FRAME_BYTES
        last = None if end is None else max(end - 1, start) // FRAME_BYTES
        begin = HEAD_BYTES + number * SEALED_BYTES
        stop = None if last is None else HEAD_BYTES + (last + 1) * SEALED_BYTES
        waiting = bytearray()
        is_last = False
        async for chunk in self._below.read(key, begin, stop):
            waiting += chunk
            # A whole frame is opened once it is known whether more follows it.
            while len(waiting) > SEALED_BYTES:
                content = cipher.open(bytes(waiting[:SEALED_BYTES]), _place(key, number, is_last=False))
                if piece := _cut(content, number, start, end):
                    yield piece
                del waiting[:SEALED_BYTES]
                number += 1
        if waiting:
            content, is_last = _either(cipher, bytes(waiting), key, number)
            if piece := _cut(content, number, start, end):
                yield piece
        if end is None and not is_last and (waiting or not start):
            raise Damaged(f"{key} is cut short")


def content_bytes(size: int) -> int:
    """Bytes of content in a sealed object of this size."""
    frames = -(-(size - HEAD_BYTES) // SEALED_BYTES)
    return size - HEAD_BYTES - frames * SEAL_BYTES


async def _sealed(cipher: Cipher, key: str, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    yield _MAGIC + cipher.key_id.encode()
    waiting = bytearray()
    number = 0
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) > FRAME_BYTES:
            yield cipher.seal(bytes(waiting[:FRAME_BYTES]), _place(key, number, is_last=False))
            del waiting[:FRAME_BYTES]
            number += 1
    yield cipher.seal(bytes(waiting), _place(key, number, is_last=True))


def _either(cipher: Cipher, sealed: bytes, key: str, number: int) -> tuple[bytes, bool]:
    """A frame that is the last, or the last of the stretch that was read."""
    try:
        return cipher.open(sealed, _place(key, number, is_last=True)), True
    except Damaged:
        return cipher.open(sealed, _place(key, number, is_last=False)), False


def _cut(content: bytes, number: int, start: int, end: int | None) -> bytes:
    first = number * FRAME_BYTES
    return content[max(0, start - first) : None if end is None else max(0, end - first)]


def _place(key: str, number: int, *, is_last: bool) -> bytes:
    return f"{key}/{number}/{'last' if is_last else 'more'}".encode()


def _batch(key: str) -> str | None:
    """The batch that an object belongs to, where it may be sealed."""
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix).partition("/")[0]
    return None
