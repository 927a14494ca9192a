"""The API keys in the file of the view."""

from tidemill import keys
from tidemill.api.requests.paging import Page, Row
from tidemill.api.view.sqlite import Database, page_rows
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.signing import Verifier


class Keyring(keys.Keyring):
    """API keys in the file of the view."""

    def __init__(self, database: Database, verifier: Verifier) -> None:
        """Open the keyring; if the trusted keys have changed, it is folded again."""
        super().__init__(verifier)
        self._database = database
        trusted = " ".join(verifier.kids)
        with database.transaction():
            if database.first("SELECT signers FROM trust") != trusted:
                database.write("DELETE FROM keys")
                database.write("DELETE FROM topics WHERE name = ?", topics.KEYS.name)
                database.write("DELETE FROM trust")
                database.write("INSERT INTO trust VALUES (?)", trusted)

    def by_digest(self, sha256: str) -> KeyRecord | None:
        """The key whose secret has this digest, even if it is revoked or expired."""
        return _record(self._database.first("SELECT body FROM keys WHERE sha256 = ?", sha256))

    def by_id(self, key_id: str) -> KeyRecord | None:
        """A key by its id."""
        return _record(self._database.first("SELECT body FROM keys WHERE id = ?", key_id))

    def projects(self, limit: int) -> list[str]:
        """The first projects, by name, that have a key."""
        return [
            one for (one,) in self._database.read("SELECT DISTINCT project FROM keys ORDER BY 1 LIMIT ?", limit)
        ]

    def rows(self, project: str | None, page: Page) -> list[Row]:
        """Up to `page.limit` + 1 keys of a project or of all, the newest first.

        Raises:
            ApiError: 400, `page.after` is not one of them.
        """
        found = page_rows(
            self._database, "keys", "coalesce(?, project) = project", [project], page, project=project
        )
        keys = (codec.decode_key(body).key for _, body in found)
        return [Row(id=key.id, body=key.model_dump_json().encode()) for key in keys]

    def signed_by_others(self, kid: str) -> list[KeyRecord]:
        """The keys whose last record another key signed."""
        rows = self._database.read("SELECT body FROM keys WHERE signer <> ? ORDER BY created_at", kid)
        return [codec.decode_key(body) for (body,) in rows]

    def store(self, record: KeyRecord, signer: str) -> None:
        """Replace the record of a key; `signer` is the id of the key that signed it."""
        key = record.key
        self._database.write(
            "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            key.id, key.project, key.created_at, record.sha256, key.revoked_at is not None, key.expires_at,
            signer, codec.encode(record),
        )  # fmt: skip


def _record(body: bytes | None) -> KeyRecord | None:
    return None if body is None else codec.decode_key(body)
