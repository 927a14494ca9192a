"""An object store that seals the objects of running batches: parts, large lines and results.

A sealed object starts with `TMS1` and the id of its key. Frames of 64 KiB follow, each bound to the object's key
in the store, its number and whether it is the last: readers can read ranges, and detect truncated, moved and
exchanged frames. Lengths and offsets refer to the content. Objects of batches without a key are stored as they
are.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from tidemill.schemas.log.part import LARGE_PREFIX, PARTS_PREFIX
from tidemill.schemas.ports import NotFound, Store, chained, once, read_all
from tidemill.sealing.cipher import SEAL_BYTES, Cipher, Damaged
from tidemill.sealing.vault import NoKey, Vault

PREFIXES: Final = (PARTS_PREFIX, LARGE_PREFIX, "intake/")
"""The prefixes of sealed objects; the batch id follows."""
FRAME_BYTES: Final = 64 << 10
SEALED_BYTES: Final = FRAME_BYTES + SEAL_BYTES
_MAGIC: Final = b"TMS1"
KEY_ID_BYTES: Final = 16
HEAD_BYTES: Final = len(_MAGIC) + KEY_ID_BYTES


class SealedStore:
    """See `Store`. `NotFound` also means that an object is damaged or its key destroyed."""

    def __init__(self, below: Store, vault: Vault) -> None:
        self._below = below
        self._vault = vault

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Store`; it writes nothing for a deleted batch."""
        if (batch_id := _batch(key)) is None:
            return await self._below.write(key, chunks)
        try:
            cipher = await self._vault.sealing_cipher(batch_id)
        except NoKey:
            # No process will read the object.
            return 0
        if cipher is None:
            return await self._below.write(key, chunks)
        return content_bytes(await self._below.write(key, _sealed(cipher, key, chunks)))

    async def create(self, key: str, content: bytes) -> bool:
        """See `Store.create`; it writes nothing for a deleted batch."""
        if (batch_id := _batch(key)) is not None:
            try:
                cipher = await self._vault.sealing_cipher(batch_id)
            except NoKey:
                return True
            if cipher is not None:
                content = b"".join([piece async for piece in _sealed(cipher, key, once(content))])
        return await self._below.create(key, content)

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """See `Store`; sealed sources pass through this process."""
        batches = {batch_id for source in sources if (batch_id := _batch(source)) is not None}
        # Another process may have created the key a moment ago.
        if not all(self._vault.has_key(batch_id) for batch_id in batches):
            await self._vault.catch_up()
        if not any(self._vault.has_key(batch_id) for batch_id in batches):
            return await self._below.join(key, sources)
        return await self.write(key, chained(self, sources))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `Store`."""
        cipher = None if _batch(key) is None else await self._cipher(key)
        if cipher is None:
            async with aclosing(self._below.read(key, start, end)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        try:
            async with aclosing(self._opened(cipher, key, start, end)) as contents:
                async for content in contents:
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
        """The cipher of an object; None if it is not sealed.

        Raises:
            NotFound: The object or its key is missing.
        """
        batch_id = _batch(key)
        assert batch_id is not None
        head = await read_all(self._below.read(key, 0, HEAD_BYTES))
        if not head.startswith(_MAGIC):
            return None
        try:
            return await self._vault.cipher(batch_id, head[len(_MAGIC) :].decode("ascii", "replace"))
        except NoKey as error:
            raise NotFound(key) from error

    async def _opened(self, cipher: Cipher, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        number = start // FRAME_BYTES
        last = None if end is None else max(end - 1, start) // FRAME_BYTES
        begin = HEAD_BYTES + number * SEALED_BYTES
        stop = None if last is None else HEAD_BYTES + (last + 1) * SEALED_BYTES
        waiting = bytearray()
        is_last = False
        async with aclosing(self._below.read(key, begin, stop)) as chunks:
            async for chunk in chunks:
                waiting += chunk
                # A frame is opened only once a further byte shows that it is not the last.
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
            raise Damaged(f"{key} is truncated")


def content_bytes(size: int) -> int:
    """The content bytes of a sealed object of this size."""
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
    """Open the last frame of a range; returns whether it is also the object's last."""
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
    """The batch of an object that may be sealed; None for other objects."""
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix).partition("/")[0]
    return None
