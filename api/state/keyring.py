"""The keys to the API, as the log tells of them."""

from tidemill.api.paging import Row
from tidemill.api.state.sqlite import Database
from tidemill.schemas import codec
from tidemill.schemas.messages import KeyRecord


class Keyring:
    """In the file of the view. A key that is revoked stays so, whatever order its records are read in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_digest(self, sha256: str) -> KeyRecord | None:
        """The key whose secret has this digest, whatever has become of it."""
        return _record(self._database.read("SELECT body FROM keys WHERE sha256 = ?", sha256))

    def by_id(self, key_id: str) -> KeyRecord | None:
        """A key by its id."""
        return _record(self._database.read("SELECT body FROM keys WHERE id = ?", key_id))

    def rows(self, project: str | None, after: str | None, limit: int) -> list[Row] | None:
        """Up to `limit` keys of a project or of all, the newest first; None where `after` is not one of them."""
        where = "(? IS NULL OR project = ?)"
        values: list[object] = [project, project]
        if after is not None:
            if (record := self.by_id(after)) is None or project not in {None, record.key.project}:
                return None
            where += " AND (created_at, id) < (?, ?)"
            values += [record.key.created_at, after]
        rows = self._database.read(
            f"SELECT body FROM keys WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ?",  # noqa: S608
            *values, limit,
        )  # fmt: skip
        records = (_record([row]) for row in rows)
        return [Row(id=r.key.id, body=r.key.model_dump_json().encode()) for r in records if r is not None]

    def put(self, record: KeyRecord) -> None:
        """Take in what the log tells of a key."""
        key = record.key
        self._database.write(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
            " SET revoked = excluded.revoked, body = excluded.body WHERE NOT keys.revoked",
            key.id, key.project, key.created_at, record.sha256, key.revoked_at is not None, codec.encode(record),
        )  # fmt: skip

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Take a record of the topic.

        Raises:
            DecodeError: It cannot be read.
        """
        del offset
        if value is None:
            self._database.write("DELETE FROM keys WHERE id = ?", key)
        else:
            self.put(codec.decode_key(value))


def _record(rows: list[tuple[object, ...]]) -> KeyRecord | None:
    if not rows:
        return None
    body = rows[0][0]
    assert isinstance(body, bytes)
    return codec.decode_key(body)
