"""Publishes the records of the api; the view of this process shows each one once the log has it."""

from tidemill.api.view.view import View
from tidemill.schemas.log import codec, topics
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
        await self._log.send(topics.CLAIMS.name, claim.command.batch.id, codec.encode(claim), headers=[])

    async def command(self, batch_id: str, command: BatchCreated | CancelRequested | DeleteRequested) -> None:
        """Publish a command about a batch; the caller shows its effect."""
        headers = [(codec.KIND, command.kind.encode())]
        await self._log.send(topics.COMMANDS.name, batch_id, codec.encode(command), headers=headers)

    async def file(self, record: FileRecord) -> None:
        """Publish a file."""
        offset = await self._log.send(topics.FILES.name, record.file.id, codec.encode(record), headers=[])
        self._view.put_file(record, offset)

    async def file_deletion(self, file_id: str) -> None:
        """Publish the deletion of a file."""
        offset = await self._log.send(topics.FILES.name, file_id, None, headers=[])
        self._view.drop_file(file_id, offset)

    async def upload(self, record: UploadRecord | PartRecord) -> None:
        """Publish an upload or a part of one."""
        key = record.upload.id if isinstance(record, UploadRecord) else f"{record.part.upload_id}/{record.part.id}"
        await self._log.send(topics.UPLOADS.name, key, codec.encode(record), headers=[])
        self._view.uploads.put(record)

    async def upload_deletion(self, key: str) -> None:
        """Publish the deletion of an upload or a part, by the key of its record."""
        await self._log.send(topics.UPLOADS.name, key, None, headers=[])
        self._view.uploads.drop(key)

    async def key(self, record: KeyRecord) -> None:
        """Sign and publish an API key."""
        await self._log.send(topics.KEYS.name, record.key.id, self._signer.key_record(record), headers=[])
        self._view.keyring.put(record, self._signer.kid)
