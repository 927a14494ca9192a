"""Files on this machine or in a bucket (`s3://`), by one interface: that of Arrow's file systems.

The bucket's address, region and credentials come from the usual variables (`AWS_ENDPOINT_URL`,
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, …).
"""

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa
from pyarrow import fs

from tidemill.tables import TableError

S3: Final = "s3://"
FILES_MAX: Final = 1_000_000
"""Files of one source."""
JOURNAL: Final = ".tidemill"
"""The end of the name of a folder with the journal of a run."""


@dataclass(frozen=True)
class File:
    """A file of a source."""

    path: str
    """Its path in the file system."""
    name: str
    """Its path below the source."""
    size: int
    mtime_ns: int

    @property
    def suffix(self) -> str:
        """The end of its name in lower case, without that of a compression."""
        path = PurePosixPath(self.name.lower())
        return PurePosixPath(path.stem).suffix if path.suffix in {".gz", ".zst", ".bz2"} else path.suffix


class Files:
    """The files that an address names: one, those of a folder, or of a pattern like `data/train-*.parquet`."""

    def __init__(self, address: str, environ: Mapping[str, str]) -> None:
        """Find the files.

        Raises:
            TableError: There is none, or the address cannot be read.
        """
        self.address, self._environ = address, environ
        self.system, path = system_of(address, environ)
        self._path = path
        with failures(address):
            if any(sign in path for sign in "*?["):
                base = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
                self.is_folder, self.found = False, self._below(base or ".", path)
            else:
                info = self.system.get_file_info(path)
                self.is_folder = info.type == fs.FileType.Directory
                if info.type == fs.FileType.NotFound:
                    raise TableError(f"{address} does not exist")
                self.found = self._below(path, None) if self.is_folder else [_file(info, info.base_name)]
        if not self.found:
            raise TableError(f"{address} has no files")

    def _below(self, base: str, pattern: str | None) -> list[File]:
        """The files below a folder in the order of their names, without hidden ones and journals of runs."""
        infos = self.system.get_file_info(fs.FileSelector(base, recursive=True))
        found = [
            _file(info, info.path.removeprefix(base.rstrip("/") + "/"))
            for info in infos
            if info.is_file and (pattern is None or fnmatch.fnmatchcase(info.path, pattern))
        ]
        found = [file for file in found if not any(map(_is_hidden, file.name.split("/")))]
        if len(found) > FILES_MAX:
            raise TableError(f"{self.address} has more than {FILES_MAX:,} files: name a part of them")
        return sorted(found, key=lambda file: file.name)

    def check_apart(self, output: str) -> None:
        """Check that an output is not a file of the source, so that the next run reads the same rows.

        Raises:
            TableError: It is.
        """
        system, path = system_of(output, self._environ)
        if system.type_name != self.system.type_name:
            return
        path, source = (
            os.path.realpath(each) if system.type_name == "local" else each for each in (path, self._path)
        )
        if self.is_folder and path.startswith(source.rstrip("/") + "/"):
            raise TableError(
                f"-o {output} lies in the source {self.address}, whose files are the rows: choose another folder"
            )
        if path == source or fnmatch.fnmatchcase(path, source):
            raise TableError(f"-o {output} is a file of the source {self.address}: choose another name")

    def open(self, file: File) -> Any:
        """A file for random access."""
        with failures(file.path):
            return self.system.open_input_file(file.path)

    def stream(self, file: File) -> Any:
        """A file from its beginning, decompressed by its suffix."""
        with failures(file.path):
            return self.system.open_input_stream(file.path, compression="detect", buffer_size=1 << 20)

    def read(self, file: File, bytes_max: int) -> bytes:
        """The content of a file.

        Raises:
            TableError: It has more bytes, or cannot be read.
        """
        if file.size > bytes_max:
            raise TableError(f"it has {file.size:,} bytes; at most {bytes_max:,} are read")
        with failures(file.path), self.system.open_input_file(file.path) as opened:
            return bytes(opened.read())


def fingerprint(files: Iterable[File]) -> str:
    """A hash that changes with the names, sizes and times of the files."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def system_of(address: str, environ: Mapping[str, str]) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path in it."""
    if not address.startswith(S3):
        return fs.LocalFileSystem(), os.path.abspath(address)  # noqa: PTH100 - `Path` would drop a pattern's "./"
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    options = {"endpoint_override": endpoint, "region": region}
    with failures(address):
        return fs.S3FileSystem(**{name: given for name, given in options.items() if given}), address[len(S3) :]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) or name.endswith(JOURNAL)


def _file(info: fs.FileInfo, name: str) -> File:
    return File(path=info.path, name=name, size=info.size, mtime_ns=info.mtime_ns or 0)


@contextmanager
def failures(address: str) -> Iterator[None]:
    """Name the address in what a file system raises.

    Raises:
        TableError: In place of that.
    """
    try:
        yield
    except (OSError, UnicodeError, pa.ArrowException) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TableError(f"{address}: {text.splitlines()[0][:300]}") from error
