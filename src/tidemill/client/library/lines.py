"""The input of a batch: a file, or lines that go into a temporary one."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tidemill.client import files
from tidemill.client.errors import UsageError
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX

Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""A file of lines, or the lines: objects with `custom_id`, `method`, `url` and `body`."""


@contextmanager
def spooled(source: Source) -> Iterator[Path]:
    """The file of a source; lines go into a temporary one."""
    if isinstance(source, str | os.PathLike):
        yield Path(source)
        return
    with tempfile.NamedTemporaryFile(prefix="tidemill-", suffix=".jsonl") as file:
        _write(file, source)  # type: ignore[arg-type]  # it is a binary file
        yield Path(file.name)


def _write(file: BinaryIO, lines: Iterable[Mapping[str, Any]]) -> None:
    for number, line in enumerate(lines, start=1):
        try:
            content = orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError as error:
            raise UsageError(f"line {number} is not JSON: {error}") from error
        if len(content) > LINE_BYTES_MAX:
            raise UsageError(f"line {number} has {len(content):,} bytes; at most {LINE_BYTES_MAX:,} are allowed")
        file.write(content + b"\n")
    file.flush()


def name_of(source: Source) -> str:
    """What messages call it."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "the input"


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return files.sha256_of(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
