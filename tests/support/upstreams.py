"""The base of scripted servers."""

import asyncio
from collections.abc import Callable
from typing import Any

from tidemill.processors.http.connection import OnEnd


class Upstream:
    """An `Upstream` whose calls are tasks of its `post`."""

    post: Any
    is_open = True
    """Whether a connection is open, so that a call needs no task."""

    def fault(self, url: str, headers: dict[str, str]) -> str:
        """See `HttpUpstream`."""
        del url, headers
        return "Connection refused"

    def begin(
        self, url: str, headers: dict[str, str], body: bytes, seconds: float, more: bytes, *, on_end: OnEnd
    ) -> Callable[[], object] | None:
        """See `Upstream`."""
        if not self.is_open:
            return None

        is_aborted = False

        def end(task: "asyncio.Task[Any]") -> None:
            if not is_aborted and not task.cancelled():
                on_end(task.result())

        def abort() -> None:
            nonlocal is_aborted
            is_aborted = True
            task.cancel()

        task = asyncio.get_running_loop().create_task(self.post(url, headers, body, seconds, more))
        task.add_done_callback(end)
        return abort
