"""The log of a process: one line an event, as JSON or as text for people, and without text of users.

Messages of Tidemill name ids, counts and settings. Messages of other code may quote a line. So tracebacks, and
errors in arguments, show places and kinds of errors without their texts, and libraries log only warnings.
"""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import orjson

from tidemill.configuration.connections import Logs
from tidemill.retrying import reason
from tidemill.schemas import ids
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import RecordTooLarge
from tidemill.telemetry import context
from tidemill.telemetry.log_dedup import LogDedup, StartFilter
from tidemill.terminal import printable

FIELDS: Final = (
    "batch_id", "request_id", "trace_id", "method", "route", "status", "code", "duration_ms", "bytes", "project",
    "key_id",
)  # fmt: skip
"""What a line may have besides its message, in this order."""
MESSAGE_CHARS_MAX: Final = 4_096
OPERATIONAL: Final = ("tidemill.configuration.", "tidemill.faust.", "tidemill.kafka.", "tidemill.runtime.")
"""Packages whose errors describe the installation, never a line."""
FRAMES_MAX: Final = 40
"""Places of one error of a traceback."""
CAUSES_MAX: Final = 5
"""Errors of a traceback."""
QUIET: Final = ("tidemill.faust.stage_app", "tidemill.faust.tables")
"""Modules of Tidemill whose loggers a library uses."""

_log = logging.getLogger(__name__)


def set_up(stage: str, settings: Logs, warnings: Iterable[object] = ()) -> None:
    """Write the log of this process to its standard error; it begins with these warnings."""
    handler = logging.StreamHandler(sys.stderr)
    is_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(Json(stage) if is_json else Text(stage))
    handler.addFilter(StartFilter())
    handler.addFilter(LogDedup())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tidemill").setLevel(settings.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    for warning in warnings:
        _log.warning("%s", warning)


def _uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt):
        _log.critical("the process ends, or one of its threads does", exc_info=error)


class Json(logging.Formatter):
    """A JSON object on a line."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "stage": self._stage,
            "logger": record.name,
            "message": _message(record),
            **_fields(record),
        }
        if found := "".join(_traceback(record)):
            line["exception"] = found
        # Python and some readers of logs take these for ends of lines.
        text = orjson.dumps(line, default=str).decode()
        return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


class Text(logging.Formatter):
    """A line for people; the lines of a traceback follow, indented."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields = "".join(f" {name}={printable(str(value))}" for name, value in _fields(record).items())
        name = f"{self._stage} {record.name}"
        head = f"{_time(record)} {record.levelname} {name}: {printable(_message(record))}{fields}"
        lines = (line for text in _traceback(record) for line in text.splitlines())
        return "\n".join((head, *(f"    {printable(line)}" for line in lines)))


def described(error: BaseException) -> str:
    """An error without text that may quote a user: its kind, and the texts of the system and of the log."""
    kind = type(error).__name__
    if isinstance(error, DecodeError | RecordTooLarge) or type(error).__module__.startswith(OPERATIONAL):
        return f"{kind}: {error}"
    if isinstance(error, OSError) and (words := reason(error)) != kind:
        return f"{kind}: {words}"
    return kind


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    args = record.args
    if isinstance(args, tuple) and any(isinstance(arg, BaseException) for arg in args):
        args = tuple(described(arg) if isinstance(arg, BaseException) else arg for arg in args)
    try:
        text = str(record.msg) % args if args else str(record.msg)
    except (TypeError, ValueError):
        text = str(record.msg)
    if record.name == asyncio.__name__:
        # Its further lines show tasks and errors with their texts.
        text = text.partition("\n")[0]
    return text[:MESSAGE_CHARS_MAX]


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = context.ids()
    args = record.args if isinstance(record.args, tuple) else ()
    if named := next((arg for arg in args if isinstance(arg, str) and ids.is_batch_id(arg)), None):
        found["batch_id"] = named
    found |= {name: value for name in FIELDS if (value := record.__dict__.get(name)) is not None}
    return {name: found[name] for name in FIELDS if name in found}


def _traceback(record: logging.LogRecord) -> Iterator[str]:
    """The errors of a record, the last one first, each with its places but without its text."""
    error = record.exc_info[1] if record.exc_info else None
    for number in range(CAUSES_MAX):
        if error is None:
            return
        yield f"{'because of ' if number else ''}{described(error)}\n"
        yield from traceback.format_tb(error.__traceback__, limit=-FRAMES_MAX)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
