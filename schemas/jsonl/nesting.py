"""How JSON text is nested, told from its brackets without parsing it: in one pass, however they stand.

A parser makes an object of every bracket: 8 MiB of them take it a second or two, and half a gigabyte. So what a
user may write is looked at here first. The passes go chunk by chunk, which lets other threads run in between.
The text need not be valid JSON; for text that is not, the answers mean nothing, but come as fast.
"""

from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

CHUNK_BYTES: Final = 64 * 1024
"""A chunk is less than a millisecond of work."""
SKIPPED_BRACKETS_MIN: Final = 32
"""As many brackets as there are levels left cannot pass the bound: most text is skipped in blocks of that size."""
COUNTED_BRACKETS: Final = 1024
"""A block where levels are nearly used up is counted bracket by bracket, at some 12 ns each."""
LEVELS_MAX: Final = 255
"""`elements` counts in bytes."""

_BRACKETS: Final = b"{}[]"
_CLOSES: Final = 0xFF
"""-1 in a signed byte."""


def _table(steps: dict[bytes, int]) -> bytes:
    told = {byte: step for kind, step in steps.items() for byte in kind}
    return bytes(told.get(byte, 0) for byte in range(256))


def _all_but(kept: bytes) -> bytes:
    return bytes(set(range(256)) - set(kept))


_STEPS: Final = _table({b"{[": 1, b"}]": _CLOSES})
_NO_BRACKETS: Final = _all_but(_BRACKETS)
_NO_BRACKETS_NO_COMMAS: Final = _all_but(_BRACKETS + b",")
_IS_COMMA: Final = bytes([1]) + bytes(255)
"""By step: a comma is none."""
_IS_FIRST_LEVEL: Final = bytes([0, 1]) + bytes(254)


def exceeds(text: bytes, levels_max: int) -> bool:
    """Whether arrays and objects are nested deeper than so many levels."""
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
            # Levels go up one by one, so a block that passes the bound has the first level beyond it.
            if not is_safe and levels_max + 1 in accumulate(array("b", block), initial=level):
                return True
            level += 2 * block.count(1) - len(block)
            at += len(block)
    return False


def elements(text: bytes) -> int:
    """How many elements an array has that is not empty and has at most `LEVELS_MAX` levels."""
    level = commas = 0
    for chunk in _outside_of_strings(text):
        steps = chunk.translate(_STEPS, _NO_BRACKETS_NO_COMMAS)
        if not steps:
            continue
        levels = bytes(accumulate(array("b", steps), initial=level))[1:]
        # Both as one number each: so the bytes that are 1 in both are found without a step for each.
        both = int.from_bytes(steps.translate(_IS_COMMA)) & int.from_bytes(levels.translate(_IS_FIRST_LEVEL))
        commas += both.bit_count()
        level = levels[-1]
    return commas + 1


def parts(text: bytes) -> int:
    """How many arrays, objects, keys and commas there are, which is what costs a parser time and memory."""
    return sum(sum(map(chunk.count, (b"{", b"[", b":", b","))) for chunk in _outside_of_strings(text))


def _outside_of_strings(text: bytes) -> Iterator[bytes]:
    """The text without its strings, piece by piece."""
    if b"\\" in text:
        # What is escaped ends no string. Backslashes pair up from the left, as `replace` takes them.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    is_inside = False
    for start in range(0, len(text), CHUNK_BYTES):
        pieces = text[start : start + CHUNK_BYTES].split(b'"')
        yield b"".join(pieces[is_inside::2])
        is_inside ^= len(pieces) % 2 == 0
