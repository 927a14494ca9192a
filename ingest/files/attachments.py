"""Checks lines that become forms: the files in a line and the form's size at once, uploaded files in the store."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from tidemill.schemas.endpoints import Endpoint
from tidemill.schemas.jsonl import attachments, form_fields, nesting
from tidemill.schemas.jsonl.attachments import AttachmentError, Inline, Stored
from tidemill.schemas.jsonl.line import parse
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound, Store, read_all

AT_ONCE_MAX: Final = 16
"""Files that are looked up at a time."""
UPLOADED_MAX: Final = 50_000
"""Uploaded files that the lines of one batch may name."""
PARTS_MAX: Final = 200
"""Bound on arrays, objects, keys and commas in a field with files."""


class Names(NamedTuple):
    """The uploaded files that a line names."""

    line: int
    files: tuple[tuple[str, str], ...]
    """Field and file id."""
    inline_bytes: int
    """Bytes of the files in the line itself."""


class Found(NamedTuple):
    """An uploaded file."""

    size: int
    media_type: str | None


class Attached:
    """The files that the lines of one input name."""

    def __init__(self, endpoint: Endpoint, project: str, *, is_stream: bool) -> None:
        """Begin without lines; a stream's uploaded files are not looked up, since its lines run at once."""
        self._endpoint = endpoint
        self._project = project
        self._is_stream = is_stream
        self._names: list[Names] = []
        self._uploaded: dict[str, None] = {}

    @property
    def is_full(self) -> bool:
        """Whether the lines name too many uploaded files, which are then not looked up."""
        return len(self._uploaded) > UPLOADED_MAX

    def examine(self, data: bytes, body: Mapping[str, Any], line: int) -> None:
        """Check the files in a line and the form that it becomes, and remember the files.

        Args:
            data: The line.
            body: Its body; of a long line, the fields that the check needs.
            line: Its number.

        Raises:
            AttachmentError: A field does not name files as it must, or the form would be too large.
        """
        names = _examined(body, self._endpoint, self._project, line)
        form_fields.check(parse(data).body, self._endpoint.files)
        if names.files and not self._is_stream and not self.is_full:
            self._names.append(names)
            self._uploaded.update(dict.fromkeys(file_id for _, file_id in names.files))

    async def faults(self, store: Store) -> list[tuple[int, AttachmentError]]:
        """The lines that name files which do not exist or may not be named, each with its first fault.

        Raises:
            OSError: The store failed.
        """
        if self.is_full or not self._uploaded:
            return []
        found, faults = await lookup(store, self._uploaded), []
        for names in self._names:
            try:
                _check(names, found, self._endpoint)
            except AttachmentError as error:
                faults.append((names.line, error))
        return faults


def _examined(body: Mapping[str, Any], endpoint: Endpoint, project: str, line: int) -> Names:
    files: list[tuple[str, str]] = []
    size = 0
    fields = {name: _value(name, body.get(name)) for name in endpoint.files}
    for field, text in attachments.fields_of(fields, endpoint.files):
        try:
            found = attachments.parsed(text, project)
            if isinstance(found, Inline):
                found.content()
        except AttachmentError as error:
            raise AttachmentError(str(error), field) from None
        if isinstance(found, Stored):
            files.append((field, found.file_id))
        else:
            _check_type(found.media_type, endpoint, field)
            size += found.size
    return Names(line, tuple(files), size)


async def lookup(store: Store, file_ids: Iterable[str]) -> dict[str, Found]:
    """The files that exist.

    Raises:
        OSError: The store failed.
    """
    found: dict[str, Found] = {}
    waiting = iter(file_ids)

    async def work() -> None:
        for file_id in waiting:
            key = file_key(file_id)
            try:
                size = await store.size(key)
                head = await read_all(store.read(key, 0, attachments.HEAD_BYTES))
            except NotFound:
                continue
            found[file_id] = Found(size, attachments.sniffed(head))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE_MAX):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return found


def _check(names: Names, found: Mapping[str, Found], endpoint: Endpoint) -> None:
    size = names.inline_bytes
    for field, file_id in names.files:
        if (file := found.get(file_id)) is None:
            raise AttachmentError(f"there is no file {file_id}", field)
        if file.media_type is None:
            raise AttachmentError(f"the type of {file_id} is unknown", field)
        _check_type(file.media_type, endpoint, field)
        size += file.size
        if size > attachments.BYTES_MAX:
            text = f"the files of this line have more than {attachments.BYTES_MAX} bytes together"
            raise AttachmentError(text, field)


def _check_type(media_type: str, endpoint: Endpoint, field: str) -> None:
    if not media_type.startswith(endpoint.files[field].types):
        expected = " or ".join(f"{kind}…" for kind in endpoint.files[field].types)
        raise AttachmentError(f"expected a file of the type {expected}, but got {media_type}", field)


def _value(field: str, value: Any) -> Any:
    if type(value) is not msgspec.Raw:
        return value
    text = bytes(value)
    if nesting.parts(text) > PARTS_MAX:
        raise AttachmentError(f"expected 1 to {attachments.FILES_MAX} files, but got more", field)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise AttachmentError(f"it is not valid JSON: {error.msg}", field) from None
