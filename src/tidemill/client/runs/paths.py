"""Local files of a run: checks the input and the paths of the results."""

import dataclasses
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.errors import COMMANDS, UsageError, Wording
from tidemill.client.files import input_lines
from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl import malformed

TABLES: Final = frozenset({".csv", ".tsv", ".tab", ".parquet", ".arrow", ".feather", ".ipc"})
"""Suffixes of files that `tidemill map` reads and `tidemill run` does not."""
TABLE: Final = "For a table, use `tidemill map`, which asks a model about each row, or `tidemill embed`."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sink:
    """Paths of the results.

    Attributes:
        output: Output file; None is stdout.
        errors: Error file; None discards failed lines.
        receipt: Receipt file; None writes no receipt.
        force: Whether existing files may be overwritten.
        wording: How messages name these options.
    """

    output: Path | None = None
    errors: Path | None = None
    receipt: Path | None = None
    force: bool = False
    wording: Wording = COMMANDS

    def checked(self, source: Path | None) -> "Sink":
        """Complete the path of the error file, and check that all paths can be written, and are not the input.

        Raises:
            UsageError: Two paths are equal, a folder is missing, or there is no input.
        """
        if source is not None and not source.exists():
            raise UsageError(f"{source} does not exist")
        errors = self.errors
        if errors is None and self.output is not None:
            errors = self.output.with_name(f"{self.output.stem}.errors{self.output.suffix or '.jsonl'}")
        paths = [path for path in (source, self.output, errors, self.receipt) if path]
        if len({path.resolve() for path in paths}) < len(paths):
            raise UsageError(
                f"two of these paths are the same file; give each its own: {', '.join(map(str, paths))}"
            )
        for path in paths:
            # Replacing a device such as /dev/null with a file would break the system.
            if path.exists() and not path.is_file():
                raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; name a file")
            if not (folder := path.absolute().parent).is_dir():
                raise UsageError(f"{path}: the folder {folder} does not exist; create it, or name another")
        return dataclasses.replace(self, errors=errors)

    def check_new(self) -> None:
        """Check that no file would be overwritten, unless that is allowed.

        Raises:
            UsageError: A file exists.
        """
        for path in (self.output, self.errors, self.receipt):
            if path is not None and path.is_file() and not self.force:
                raise UsageError(f"{path} already exists; {self.wording.overwrite} overwrites it")


class _First(msgspec.Struct, frozen=True):
    url: str


def endpoint_of(source: Path, name: object = None) -> str:
    """The endpoint of a batch: the url of the first line of its input, which messages call `name`.

    Raises:
        UsageError: The file is missing or empty, or its first line is not a request.
    """
    name = name or source
    try:
        first = next(input_lines(source), None)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    if first is None:
        raise UsageError(f"{name} is empty; write one request per line")
    place, text = f"{name}, line {first.number}", first.data or b""
    try:
        text.decode()
        url = msgspec.json.decode(text, type=_First).url
    except UNREADABLE as error:
        hint = f" {TABLE}" if Path(str(name)).suffix.lower() in TABLES else ""
        raise UsageError(f"{place} is not a batch request. {fault_of(text, error)}{hint}") from error
    # The service may have more endpoints than the client knows.
    if not url.startswith("/v1/"):
        raise UsageError(f"{place}: the url {url!r} is not one of {', '.join(ENDPOINTS)}")
    return url


def metadata_of(given: list[str]) -> dict[str, str]:
    """Metadata from arguments of the form `KEY=VALUE`.

    Raises:
        UsageError: An argument has another form, or a key is repeated.
    """
    found = {key: value for key, is_pair, value in (pair.partition("=") for pair in given) if is_pair and key}
    if len(found) < len(given):
        raise UsageError("--metadata: expected KEY=VALUE, each key once")
    return found


def size_of(source: Path) -> int:
    """Size of a file in bytes."""
    return source.stat().st_size


def fault_of(text: bytes, error: Exception) -> str:
    """Why a decoder rejected a line: where its JSON breaks, how to fix its encoding, or which field is wrong."""
    if text.lstrip().startswith(b"["):
        return malformed.ARRAY
    return str(error) if isinstance(error, msgspec.ValidationError) else malformed.reason(text)
