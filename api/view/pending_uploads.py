"""Uploads in parts, folded from the log."""

from dataclasses import dataclass

from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import PartRecord, UploadRecord
from tidemill.schemas.ports import Clock

KEPT_SECONDS = 86_400
"""How long an upload is kept after its hour, for clients that complete it again."""
GRACE_SECONDS = 600
"""How long the parts of a pending upload stay after its hour; it may just be assembled."""


@dataclass(frozen=True, kw_only=True)
class Due:
    """An upload with parts or a record to delete."""

    upload_id: str
    is_forgotten: bool
    """Whether to delete its record too."""


class PendingUploads:
    """Uploads in the file of the view. A finished one stays finished, in any order of its records."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def upload(self, project: str, upload_id: str) -> UploadRecord | None:
        """An upload; a pending one is expired after its hour."""
        body = self._database.first("SELECT body FROM uploads WHERE id = ? AND project = ?", upload_id, project)
        if body is None:
            return None
        record = codec.decode_upload(body)
        assert isinstance(record, UploadRecord)
        if record.upload.status == "pending" and record.upload.expires_at <= self._clock():
            return record.model_copy(update={"upload": record.upload.model_copy(update={"status": "expired"})})
        return record

    def parts(self, upload_id: str) -> dict[str, PartRecord]:
        """The parts of an upload by their ids."""
        rows = self._database.read("SELECT body FROM parts WHERE upload_id = ?", upload_id)
        records = (codec.decode_upload(body) for (body,) in rows)
        return {record.part.id: record for record in records if isinstance(record, PartRecord)}

    def has_part(self, upload_id: str, part_id: str) -> bool:
        """Whether an upload has a part."""
        statement = "SELECT 1 FROM parts WHERE id = ? AND upload_id = ?"
        return self._database.first(statement, part_id, upload_id) is not None

    def keys(self, upload_id: str) -> list[tuple[str, str]]:
        """The parts of an upload: the id of each, and the key of its bytes."""
        return self._database.read("SELECT id, key FROM parts WHERE upload_id = ?", upload_id)

    def arrived(self, upload_id: str) -> tuple[int, int]:
        """How many parts an upload has, and their bytes in all."""
        ((number, size),) = self._database.read(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM parts WHERE upload_id = ?", upload_id
        )
        return number, size

    def put(self, record: UploadRecord | PartRecord) -> None:
        """Add a record."""
        body = codec.encode(record)
        if isinstance(record, PartRecord):
            self._database.write(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)",
                record.part.id, record.part.upload_id, record.bytes, record.key, body,
            )  # fmt: skip
            return
        upload = record.upload
        self._database.write(
            "INSERT INTO uploads VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " pending = excluded.pending, body = excluded.body WHERE uploads.pending",
            upload.id, record.project, upload.expires_at, upload.status == "pending", body,
        )  # fmt: skip

    def drop(self, key: str) -> None:
        """Remove an upload or a part, as a tombstone says."""
        upload_id, _, part_id = key.partition("/")
        if part_id:
            self._database.write("DELETE FROM parts WHERE id = ?", part_id)
        else:
            self._database.write("DELETE FROM uploads WHERE id = ?", upload_id)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of the topic; raises `DecodeError`."""
        del offset
        if value is None:
            self.drop(key)
        else:
            self.put(codec.decode_upload(value))

    def due(self, limit: int, now: float) -> list[Due]:
        """Up to `limit` uploads with unneeded parts or an old record.

        Args:
            limit: Their number.
            now: Unix seconds; at -inf none is too old.
        """
        rows = self._database.read(
            "SELECT id, expires_at FROM uploads WHERE expires_at <= ? OR ((expires_at <= ? OR NOT pending)"
            " AND EXISTS (SELECT 1 FROM parts WHERE upload_id = uploads.id)) ORDER BY expires_at LIMIT ?",
            now - KEPT_SECONDS, now - GRACE_SECONDS, limit,
        )  # fmt: skip
        return [
            Due(upload_id=upload_id, is_forgotten=expires_at + KEPT_SECONDS <= now)
            for upload_id, expires_at in rows
        ]
