"""Where a batch's lines come from and where its results go, on this machine."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidemill.client.runs.reconciliation import BOM
from tidemill.schemas.bounds import LARGE_BYTES_MAX
from tidemill.schemas.endpoints import ENDPOINTS


class InputFault(Exception):
    """A file cannot be used as it was named; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Sink:
    """Where results go.

    Attributes:
        output: The output file; None is stdout.
        errors: The error file; None is not kept.
        receipt: Where the receipt is written; None is nowhere.
    """

    output: Path | None = None
    errors: Path | None = None
    receipt: Path | None = None

    def checked(self, source: Path | None, *, force: bool = True) -> "Sink":
        """Fill in where the errors go, and see that the files can be written.

        Args:
            source: The input, which must not be one of them.
            force: Whether files that are there may be overwritten.

        Raises:
            InputFault: Two of the files are the same, a folder is not there, or a file is.
        """
        errors = self.errors
        if errors is None and self.output is not None:
            errors = self.output.with_name(f"{self.output.stem}.errors{self.output.suffix or '.jsonl'}")
        paths = [path for path in (source, self.output, errors, self.receipt) if path]
        if len({path.resolve() for path in paths}) < len(paths):
            raise InputFault(f"the same file is named twice: {', '.join(map(str, paths))}")
        for path in paths:
            # A device, which /dev/null is, would be replaced by a file.
            if path.exists() and not path.is_file():
                raise InputFault(f"{path} is {'a folder' if path.is_dir() else 'no ordinary file'}")
            if not (folder := path.absolute().parent).is_dir():
                raise InputFault(f"{path}: there is no folder {folder}")
        whole = Sink(output=self.output, errors=errors, receipt=self.receipt)
        if not force:
            whole.check_new()
        return whole

    def check_new(self) -> None:
        """See that nothing would be overwritten.

        Raises:
            InputFault: A file is there.
        """
        for path in (self.output, self.errors, self.receipt):
            if path is not None and path.is_file():
                raise InputFault(f"{path} is there already; --force overwrites it")


class _First(msgspec.Struct, frozen=True):
    url: str


def endpoint_of(source: Path) -> str:
    """Look at the first line of an input, and read from it what the batch asks for.

    Raises:
        InputFault: There is no file, nothing in it, or its first line is no request.
    """
    try:
        with source.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LARGE_BYTES_MAX), b""), start=1):
                if text := line.removeprefix(BOM).strip():
                    return _endpoint(f"{source}, line {number}", text)
    except OSError as error:
        raise InputFault(f"{source}: {error.strerror}") from error
    raise InputFault(f"{source} is empty")


def pairs(given: list[str]) -> dict[str, str]:
    """Metadata as the command line has it: `KEY=VALUE`, one an entry.

    Raises:
        InputFault: One is written in another way.
    """
    found = {key: value for key, is_pair, value in (pair.partition("=") for pair in given) if is_pair and key}
    if len(found) < len(given):
        raise InputFault("--metadata takes KEY=VALUE, each key once")
    return found


def size_of(source: Path) -> int:
    """The length of a file in bytes."""
    return source.stat().st_size


def _endpoint(place: str, text: bytes) -> str:
    try:
        url = msgspec.json.decode(text, type=_First).url
    except ValueError as error:
        raise InputFault(f"{place} is no request of a batch: {error}") from error
    if url not in ENDPOINTS:
        raise InputFault(f"{place}: the url {url!r} is none of {', '.join(ENDPOINTS)}")
    return url
