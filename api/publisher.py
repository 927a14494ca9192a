"""Publishes the records of the api; the view of this process shows each one once the log has it."""

import asyncio
from typing import Final
from weakref import WeakValueDictionary

from tidemill.api.view.view import View
from tidemill.bounded_dict import BoundedDict
from tidemill.schemas.log import codec, intake, producer_token, topics
from tidemill.schemas.log.messages import (
    BatchCreated,
    CancelRequested,
    Claim,
    DeleteRequested,
    FileRecord,
    KeyRecord,
    PartRecord,
    UploadRecord,
)
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.ports import Sender
from tidemill.schemas.resources.batch import Batch

SEQUENCES_MAX: Final = 10_000
"""Open batches whose last append a process remembers; the view has that of others some moments later."""
TOKENS_MAX: Final = 1_000


class IntakeProducer:
    """Produces to `tidemill.intake`, for the batches that the api opens.

    Each method raises `LogUnavailable` if the log does not answer; the record may be in the log anyway.
    """

    def __init__(self, log: Sender, signer: Signer) -> None:
        self._log = log
        self._signer = signer
        self._sequences: BoundedDict[str, int] = BoundedDict(SEQUENCES_MAX)
        self._tokens: BoundedDict[str, bytes] = BoundedDict(TOKENS_MAX)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, batch_id: str) -> asyncio.Lock:
        """The lock of a batch: its appends follow each other."""
        return self._turns.setdefault(batch_id, asyncio.Lock())

    def sequence(self, batch: Batch) -> int:
        """The highest append that is in the log, as far as this process knows."""
        return max(batch.tidemill.sequence or 0, self._sequences.get(batch.id, 0))

    async def open(self, command: BatchCreated) -> None:
        """Open a batch; a repeated record changes nothing."""
        await self._send(command.project, command.batch.id, b"", intake.opening_headers(self._signer, command))

    async def append(self, project: str, batch_id: str, lines: bytes, *, sequence: int) -> None:
        """Append lines; ingest drops a record whose sequence is not above those before."""
        await self._send(project, batch_id, lines, [(intake.SEQ, b"%d" % sequence)])
        self._sequences[batch_id] = sequence

    async def seal(self, project: str, batch_id: str) -> None:
        """Seal a batch."""
        await self._send(project, batch_id, b"", [(intake.END, b"true")])

    async def _send(self, project: str, batch_id: str, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        credential = (intake.AUTHORIZATION, b"Bearer %b" % self._token(project, batch_id))
        await self._log.send(topics.INTAKE.name, batch_id, value, headers=[credential, *headers])

    def _token(self, project: str, batch_id: str) -> bytes:
        """The token for records of the batch, the same in all processes: ingest checks its signature once."""
        if (known := self._tokens.get(batch_id)) is None:
            claims = producer_token.Claims(sub=batch_id, project=project, key=None, iat=0, exp=0)
            known = self._tokens[batch_id] = producer_token.token(self._signer, claims).encode()
        return known


class Publisher:
    """Writes records to the log.

    Each method raises `LogUnavailable` if the log does not answer; the record may be in the log anyway.
    """

    def __init__(self, log: Sender, view: View, signer: Signer) -> None:
        self._log = log
        self._view = view
        self._signer = signer

    async def claim(self, claim: Claim) -> None:
        """Publish a claim of a batch id."""
        await self._log.send(topics.CLAIMS.name, claim.command.batch.id, codec.encode(claim))

    async def command(self, batch_id: str, command: BatchCreated | CancelRequested | DeleteRequested) -> None:
        """Publish a command about a batch; the caller shows its effect."""
        headers = [(codec.KIND, command.kind.encode())]
        await self._log.send(topics.COMMANDS.name, batch_id, codec.encode(command), headers=headers)

    async def file(self, record: FileRecord) -> None:
        """Publish a file."""
        offset = await self._log.send(topics.FILES.name, record.file.id, codec.encode(record))
        self._view.put_file(record, offset)

    async def file_deletion(self, file_id: str) -> None:
        """Publish the deletion of a file."""
        offset = await self._log.send(topics.FILES.name, file_id, None)
        self._view.drop_file(file_id, offset)

    async def upload(self, record: UploadRecord | PartRecord) -> None:
        """Publish an upload or a part of one."""
        key = record.upload.id if isinstance(record, UploadRecord) else f"{record.part.upload_id}/{record.part.id}"
        await self._log.send(topics.UPLOADS.name, key, codec.encode(record))
        self._view.uploads.put(record)

    async def upload_deletion(self, key: str) -> None:
        """Publish the deletion of an upload or a part, by the key of its record."""
        await self._log.send(topics.UPLOADS.name, key, None)
        self._view.uploads.drop(key)

    async def key(self, record: KeyRecord) -> None:
        """Sign and publish an API key."""
        await self._log.send(topics.KEYS.name, record.key.id, self._signer.key_record(record))
        self._view.keyring.put(record, self._signer.kid)
