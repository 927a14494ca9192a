"""Measures the nesting of JSON text by its brackets, in one pass and without parsing it.

A parser creates an object for each bracket: 8 MiB of them take a second or two, and half a gigabyte. So input is
checked here first, chunk by chunk, which lets other threads run in between. For text that is not valid JSON the
results are meaningless, but take no longer.
"""

from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

CHUNK_BYTES: Final = 64 * 1024
"""Less than a millisecond of work."""
SKIPPED_BRACKETS_MIN: Final = 32
"""A block of at most as many brackets as levels are left cannot exceed the bound, and is skipped."""
COUNTED_BRACKETS: Final = 1024
"""Near the bound, a block is counted bracket by bracket, at about 12 ns each."""
DEPTH_MAX: Final = 128
"""The most levels of a line of the input."""
LEVELS_MAX: Final = 255
"""`elements` counts levels in bytes."""

_BRACKETS: Final = b"{}[]"
_CLOSES: Final = 0xFF
"""-1 in a signed byte."""


def _table(steps: dict[bytes, int]) -> bytes:
    step_of = {byte: step for kind, step in steps.items() for byte in kind}
    return bytes(step_of.get(byte, 0) for byte in range(256))


def _all_but(kept: bytes) -> bytes:
    return bytes(set(range(256)) - set(kept))


_STEPS: Final = _table({b"{[": 1, b"}]": _CLOSES})
_NO_BRACKETS: Final = _all_but(_BRACKETS)
_NO_BRACKETS_NO_COMMAS: Final = _all_but(_BRACKETS + b",")
_IS_COMMA: Final = bytes([1]) + bytes(255)
"""By step: 0 is a comma."""
_IS_FIRST_LEVEL: Final = bytes([0, 1]) + bytes(254)


def exceeds(text: bytes, levels_max: int) -> bool:
    """Whether arrays and objects are nested deeper than `levels_max`."""
    if sum(text.count(kind) for kind in (b"{", b"[")) <= levels_max:
        return False
    level = 0
    for chunk in _outside_of_strings(text):
        steps = chunk.translate(_STEPS, _NO_BRACKETS)
        at = 0
        while at < len(steps):
            room = levels_max - level
            is_safe = room >= SKIPPED_BRACKETS_MIN
            block = steps[at : at + (room if is_safe else COUNTED_BRACKETS)]
            # Levels rise one by one, so a block that exceeds the bound contains the first level above it.
            if not is_safe and levels_max + 1 in accumulate(array("b", block), initial=level):
                return True
            level += 2 * block.count(1) - len(block)
            at += len(block)
    return False


def elements(text: bytes) -> int:
    """The number of elements of an array that is not empty and has at most `LEVELS_MAX` levels."""
    level = commas = 0
    for chunk in _outside_of_strings(text):
        steps = chunk.translate(_STEPS, _NO_BRACKETS_NO_COMMAS)
        if not steps:
            continue
        levels = bytes(accumulate(array("b", steps), initial=level))[1:]
        # As two large numbers, so that one operation finds all commas at the first level.
        both = int.from_bytes(steps.translate(_IS_COMMA)) & int.from_bytes(levels.translate(_IS_FIRST_LEVEL))
        commas += both.bit_count()
        level = levels[-1]
    return commas + 1


def parts(text: bytes) -> int:
    """The number of arrays, objects, keys and commas, which determine a parser's time and memory."""
    return sum(sum(map(chunk.count, (b"{", b"[", b":", b","))) for chunk in _outside_of_strings(text))


def _outside_of_strings(text: bytes) -> Iterator[bytes]:
    """The text without its strings, in pieces."""
    if b"\\" in text:
        # An escaped quote ends no string. Backslashes pair up from the left, as in `replace`.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    is_inside = False
    for start in range(0, len(text), CHUNK_BYTES):
        pieces = text[start : start + CHUNK_BYTES].split(b'"')
        yield b"".join(pieces[is_inside::2])
        is_inside ^= len(pieces) % 2 == 0
