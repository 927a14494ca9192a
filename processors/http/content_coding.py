"""Bodies that a server compresses although it was asked not to: gzip and deflate are read, in bounded steps."""

import zlib
from collections.abc import Iterator
from typing import Final

STEP_BYTES: Final = 256 * 1024
"""What is decompressed at one time."""

_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
_ZLIB_METHOD: Final = 8


class CodingError(Exception):
    """A body is not what its encoding says."""


class Decoder:
    """One body in gzip or deflate, as it arrives."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._stream = zlib.decompressobj(_GZIP) if is_gzip else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes of the next bytes, in pieces of up to `STEP_BYTES`; bytes behind its end are passed over.

        Raises:
            CodingError: See there.
        """
        if self._stream is None:
            # "deflate" is zlib's format by RFC 9110 8.4.1.2, and bare deflate where servers do not keep to it.
            self._stream = zlib.decompressobj(_ZLIB if data[0] & 0x0F == _ZLIB_METHOD else _RAW)
        while data and not self._stream.eof:
            try:
                piece = self._stream.decompress(data, STEP_BYTES)
            except zlib.error as error:
                raise CodingError(str(error)) from error
            if piece:
                yield piece
            data = self._stream.unconsumed_tail

    @property
    def is_whole(self) -> bool:
        """Whether its end has come."""
        return self._stream is not None and self._stream.eof


def inflation(encoding: str) -> Decoder | None:
    """What reads a body of this `Content-Encoding`; None where nothing here does."""
    name = encoding.strip().lower().removeprefix("x-")
    return Decoder(is_gzip=name == "gzip") if name in {"gzip", "deflate"} else None
