"""Finds the prefix of a line's prompt in its bytes, without parsing them.

The prompt follows the first `"messages":`, `"prompt":` and so on of the line, by its endpoint. If the body has
such a name before its prompt, in a tool for example, the prefix is taken from there. That works as well for
similar lines, and only the order of lines depends on it.
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
    """A checksum of the first `size` bytes of a line's prompt, equal in all processes.

    None if the line has no prompt, or fewer bytes from there to its end.
    """
    if (start := _STARTS.get(url)) is None or (found := start.search(text)) is None:
        return None
    begin = found.end()
    return None if len(text) - begin < size else zlib.crc32(text[begin : begin + size])


def prefixes(model: Model, pool: BackendPool) -> Prefixes[Line] | None:
    """Groups the model's lines by prefix; None if the settings do not ask for it."""
    if (size := model.prefix_bytes) is None:
        return None
    called = [backend for backend in pool.backends if not backend.drain]
    return Prefixes(lambda line: key(line.text, line.head.url, size), called or pool.backends)
