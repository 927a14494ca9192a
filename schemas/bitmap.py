"""A set of line numbers of one batch, one bit each."""

from typing import Final

CHUNK_LINES: Final = 512
"""A bitmap grows by this many lines."""
CHUNK_BYTES: Final = CHUNK_LINES // 8


class Bitmap:
    """Line numbers from 0; `content` has bit `n & 7` of byte `n >> 3` set for each."""

    __slots__ = ("content",)

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)

    def __contains__(self, index: int) -> bool:
        byte = index >> 3
        return byte < len(self.content) and bool(self.content[byte] & (1 << (index & 7)))

    def __len__(self) -> int:
        return self.number.bit_count()

    @property
    def number(self) -> int:
        """The bitmap as a number: line 0 is its lowest bit."""
        return int.from_bytes(self.content, "little")

    def add(self, index: int) -> bool:
        """Add a line number; False if the bitmap already had it."""
        content, byte, bit = self.content, index >> 3, 1 << (index & 7)
        if byte >= len(content):
            self.grow(index // CHUNK_LINES + 1)
        before = content[byte]
        content[byte] = before | bit
        return not before & bit

    def add_all_but(self, others: "Bitmap", lines: int) -> None:
        """Add the line numbers below `lines` that `others` lacks; takes milliseconds for ten million lines."""
        self.grow(-(-lines // CHUNK_LINES))
        number = self.number | ((1 << lines) - 1) & ~others.number
        self.content[:] = number.to_bytes(len(self.content), "little")

    def remove(self, index: int) -> None:
        """Remove a line number that `add` added."""
        self.content[index >> 3] &= ~(1 << (index & 7))

    def grow(self, chunks: int) -> None:
        """Grow to at least this many chunks."""
        self.content.extend(bytes(max(0, chunks * CHUNK_BYTES - len(self.content))))

    def chunk(self, number: int) -> bytes:
        """The content of an existing chunk."""
        return bytes(self.content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])

    def set_chunk(self, number: int, content: bytes) -> None:
        """Set the content of a chunk."""
        self.grow(number + 1)
        self.content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES] = content
