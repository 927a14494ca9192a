"""Turns the body of a line whose endpoint takes files into a form (`multipart/form-data`, RFC 7578).

Fields are named as OpenAI's clients name them: `name` for a single value, `name[]` for each of a list, `name[key]`
for one in an object. Servers that take such forms: vLLM, whisper.cpp, speaches and LocalAI (audio).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec

from tidemill.processors.memory_budget import LineBudget
from tidemill.schemas.endpoints import Endpoint
from tidemill.schemas.jsonl import attachments, form_fields
from tidemill.schemas.jsonl.attachments import AttachmentError, Inline, Stored
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import Store, read_all

_BOUNDARY: Final = secrets.token_hex(16)
"""Random, so that no file can contain it on purpose."""
CONTENT_TYPE: Final = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
UNKNOWN_TYPE: Final = "application/octet-stream"
_ESCAPES: Final = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})
"""For names in the head of a part. Source: the WHATWG standard "HTML", multipart/form-data encoding algorithm."""
_bodies: Final = msgspec.json.Decoder(dict[str, Any])


class File(NamedTuple):
    """A file to send."""

    media_type: str
    content: bytes


class Forms:
    """Makes the forms of a process; all of them have one memory budget."""

    def __init__(self, store: Store, budget: LineBudget) -> None:
        """Read nothing yet.

        Args:
            store: Has the uploaded files.
            budget: Used for forms alone, since a caller that waits for it may hold memory of another budget.
        """
        self._store = store
        self._budget = budget

    @asynccontextmanager
    async def form(self, endpoint: Endpoint, body: bytes | memoryview, project: str) -> AsyncIterator[bytes]:
        """The form for a body, as long as it is needed.

        Raises:
            AttachmentError: A field does not name files as it must, or they or the form are too large.
            NotFound: A file is deleted.
            OSError: The store failed.
        """
        fields, fields_size = await asyncio.to_thread(form_fields.decoded, body, endpoint.files)
        texts = [text for _, text in attachments.fields_of(fields, endpoint.files)]
        named = {text: attachments.parsed(text, project) for text in texts}
        stored = {text: file_key(found.file_id) for text, found in named.items() if isinstance(found, Stored)}
        sizes = {text: found.size for text, found in named.items() if isinstance(found, Inline)}
        sizes |= {text: await self._store.size(key) for text, key in stored.items()}
        # The form has a file as often as the line names it.
        size = sum(sizes[text] for text in texts)
        if size > attachments.BYTES_MAX:
            raise AttachmentError(f"the files of a line have at most {attachments.BYTES_MAX} bytes together")
        async with self._budget.taken(size + fields_size):
            files = {text: await self._read(key) for text, key in stored.items()}
            yield await asyncio.to_thread(encoded, endpoint, fields, files)

    async def _read(self, key: str) -> File:
        content = await read_all(self._store.read(key))
        return File(attachments.sniffed(content[: attachments.HEAD_BYTES]) or UNKNOWN_TYPE, content)


def inline(endpoint: Endpoint, body: bytes) -> bytes:
    """The form for a body whose files are data URLs."""
    return encoded(endpoint, _bodies.decode(body), {})


def encoded(endpoint: Endpoint, fields: Mapping[str, Any], files: Mapping[str, File]) -> bytes:
    """The form.

    Args:
        endpoint: Says which fields hold files.
        fields: The body.
        files: The files that are not data URLs, by the texts that name them.
    """
    pieces: list[bytes] = []
    for name, value in fields.items():
        if name not in endpoint.files:
            for part, text in form_fields.flat(name, value):
                pieces += _head(part), text.encode(errors="replace"), b"\r\n"
    for number, (name, text) in enumerate(attachments.fields_of(fields, endpoint.files)):
        file = files.get(text) or _of_data_url(text)
        part = f"{endpoint.files[name].part or name}{'[]' if isinstance(fields[name], list) else ''}"
        filename = attachments.filename(number, file.media_type)
        head = _head(part, f'; filename="{filename}"\r\ncontent-type: {file.media_type}')
        pieces += head, file.content, b"\r\n"
    return b"".join([*pieces, f"--{_BOUNDARY}--\r\n".encode()])


def _head(name: str, more: str = "") -> bytes:
    disposition = f'content-disposition: form-data; name="{name.translate(_ESCAPES)}"{more}'
    return f"--{_BOUNDARY}\r\n{disposition}\r\n\r\n".encode(errors="replace")


def _of_data_url(text: str) -> File:
    found = attachments.parsed(text, "")
    assert isinstance(found, Inline)
    return File(found.media_type, found.content())
