"""How a line's prompt begins, as its bytes say it; nothing is parsed or decoded for it.

The prompt is what follows the first `"messages":`, `"prompt":` and so on of the line, by its endpoint. Where a
body has such a name before its prompt, in a tool for example, the bytes after that are taken. They serve as well
for lines of one making, and no more than the order of lines depends on them.
"""

import re
import zlib
from typing import Final

from tidemill.configuration.servers import Model
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.lines import Line
from tidemill.processors.scheduling.prefix_groups import Prefixes
from tidemill.schemas.endpoints import ENDPOINTS

_STARTS: Final = {
    path: re.compile(rb'"%s"\s*:\s*' % re.escape(endpoint.prompt).encode()) for path, endpoint in ENDPOINTS.items()
}


def key(text: bytes, url: str, size: int) -> int | None:
    """The same number for lines whose prompts have the same first `size` bytes.

    Args:
        text: The input line.
        url: Its endpoint.
        size: Bytes.

    Returns:
        The same in each process, so that all think alike of who should have it; None where from the prompt's
        beginning to the end of the line there are fewer bytes, or where there is no prompt.
    """
    if (start := _STARTS.get(url)) is None or (found := start.search(text)) is None:
        return None
    begin = found.end()
    return None if len(text) - begin < size else zlib.crc32(text[begin : begin + size])


def prefixes(model: Model, pool: BackendPool) -> Prefixes[Line] | None:
    """How lines begin, where they are to go by that; None where they go as they stand."""
    if (size := model.prefix_bytes) is None:
        return None
    called = [backend for backend in pool.backends if not backend.drain]
    return Prefixes(lambda line: key(line.text, line.head.url, size), called or pool.backends)
