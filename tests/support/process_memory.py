"""Searches the memory of another process."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 16 << 20
_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw")


def held(pid: int, texts: Iterable[str]) -> set[str]:
    """Those of the texts that a process, which may be any child of this one, has in memory that it can write.

    A text that crosses the border of two chunks of a large block is overlooked.
    """
    wanted = {text: text.encode() for text in texts}
    found = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if (area := _WRITABLE.match(line)) is None:
                continue
            begin, end = (int(number, 16) for number in area.groups())
            for position in range(begin, end, _CHUNK_BYTES):
                # The process may have freed it in the meantime.
                with suppress(OSError):
                    memory.seek(position)
                    content = memory.read(min(_CHUNK_BYTES, end - position))
                    found |= {text for text, encoded in wanted.items() if encoded in content}
    return found
