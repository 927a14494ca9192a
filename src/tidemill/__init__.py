"""Tidemill: an OpenAI-compatible Batch API as a stream processor on a message log."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.client.errors import Refused, Unreachable, UsageError
    from tidemill.client.library.asynchronous import AsyncTidemill
    from tidemill.client.library.blocking import Tidemill

__version__ = "0.1.0"
__all__ = ["AsyncTidemill", "Refused", "Tidemill", "Unreachable", "UsageError", "__version__"]

_HOMES = {
    "Tidemill": "tidemill.client.library.blocking",
    "AsyncTidemill": "tidemill.client.library.asynchronous",
    "Refused": "tidemill.client.errors",
    "Unreachable": "tidemill.client.errors",
    "UsageError": "tidemill.client.errors",
}


def __getattr__(name: str) -> Any:
    """Import the Python client when a program asks for it: the stages need none of it."""
    from importlib import import_module  # noqa: PLC0415

    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
