"""Seals and opens records of requests and of outcomes; records of batches without a key stay as they are.

A seal covers the record's place: for requests the batch, the indices and the number of the lines; for outcomes the
batch, the marks and the model. Headers stay in clear, so that stages can derive their state from them.
"""

from dataclasses import replace

from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, Headers, RequestHead, Seal
from tidemill.sealing.cipher import Damaged
from tidemill.sealing.vault import Vault


async def seal_request(vault: Vault, head: RequestHead, value: bytes) -> tuple[RequestHead, bytes]:
    """Seal a record of `requests` for the log.

    Raises:
        NoKey: The batch is deleted.
        OSError: Its key is unavailable.
    """
    if head.ref is not None:
        return head, value
    if (cipher := await vault.sealing_cipher(head.batch_id, head.project)) is None:
        return head, value
    head = replace(head, seal=Seal(key_id=cipher.key_id, lines=value.count(b"\n") + 1))
    return head, cipher.seal(value, _request_place(head))


async def open_request(vault: Vault, head: RequestHead, value: bytes) -> bytes:
    """Open the lines of a record of `requests`.

    Raises:
        NoKey: Its key is destroyed.
        KeyUnavailable: Its key cannot be unwrapped now.
        DecodeError: It is damaged.
    """
    if head.seal is None:
        return value
    return await _opened(vault, head.batch_id, head.seal.key_id, value, _request_place(head))


async def seal_outcome(vault: Vault, batch_id: str, value: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """Seal a record of `outcomes` with lines; returns value and headers.

    Raises:
        NoKey: The batch is deleted.
        OSError: Its key is unavailable.
    """
    if not value or (cipher := await vault.sealing_cipher(batch_id)) is None:
        return value, headers
    sealed = cipher.seal(value, _outcome_place(headers))
    return sealed, [*headers, (codec.KEY, cipher.key_id.encode())]


async def open_outcome(vault: Vault, headers: Headers, value: bytes) -> tuple[Headers, bytes]:
    """Open a record of `outcomes`, if it is sealed; returns headers and value.

    Raises:
        NoKey: Its key is destroyed.
        KeyUnavailable: Its key cannot be unwrapped now.
        DecodeError: It is damaged.
    """
    if (key_id := codec.key_id(headers)) is None:
        return headers, value
    if (batch_id := codec.lines_batch(headers)) is None:
        raise DecodeError("it has a key and no lines")
    value = await _opened(vault, batch_id, key_id, value, _outcome_place(headers))
    return [header for header in headers if header[0] != codec.KEY], value


async def _opened(vault: Vault, batch_id: str, key_id: str, value: bytes, place: bytes) -> bytes:
    try:
        return (await vault.cipher(batch_id, key_id)).open(value, place)
    except Damaged as error:
        raise DecodeError(f"it is sealed, and {error}") from error


def _request_place(head: RequestHead) -> bytes:
    assert head.seal is not None
    place = head.first if head.indices is None else ",".join(map(str, head.indices))
    return f"requests/{head.batch_id}/{place}/{head.seal.lines}".encode()


def _outcome_place(headers: Headers) -> bytes:
    found = {name: content for name, content in headers if content is not None}
    batch_id, marks, model = (found.get(name, b"") for name in (codec.BATCH, codec.MARKS, codec.MODEL))
    return b"outcomes/%b/%b/%b" % (batch_id, marks, model)
