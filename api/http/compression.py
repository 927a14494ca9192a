"""A download made smaller on its way, where the client asks for it."""

import asyncio
import zlib
from collections.abc import AsyncIterator

GZIP_BYTES_MIN = 64 * 1024
"""Below this a compressed answer is hardly sooner there, and it has no length to be checked by."""
_LEVEL = 1
_GZIP_BITS = 31


def is_wanted(header: str | None) -> bool:
    """Whether an `Accept-Encoding` takes gzip."""
    weights: dict[str, float] = {}
    for item in (header or "").lower().split(","):
        name, _, options = item.partition(";")
        weights[name.strip()] = _weight(options)
    return weights.get("gzip", weights.get("*", 0.0)) > 0


async def compressed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks as gzip; holds one of them."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_BITS)
    async for chunk in chunks:
        # It lets go of the interpreter, so other requests go on meanwhile.
        if packed := await asyncio.to_thread(packer.compress, chunk):
            yield packed
    yield packer.flush()


def _weight(options: str) -> float:
    name, _, value = options.replace(" ", "").partition("=")
    if name != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
