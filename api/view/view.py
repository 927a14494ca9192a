"""The view: batches and files, folded from the log into a SQLite file of this process.

One transaction stores rows and the offset up to which they are folded, so that a restart continues there. The
view shows the writes of this process at once; `overlay.py` and the column `place`, the offset of a file's record,
keep an older record from undoing them.
"""

import itertools
import logging
from collections.abc import Iterable

from tidemill.api.changes import ChangeEvent, ChangeFeed
from tidemill.api.requests import paging
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.paging import Page, Row
from tidemill.api.view import batch_tables, overlay
from tidemill.api.view.audit import Audit
from tidemill.api.view.batch_tables import Claims, Erasures, Links, Reader, is_read, readers
from tidemill.api.view.keyring import Keyring
from tidemill.api.view.ledger import Ledger
from tidemill.api.view.orphans import Orphans
from tidemill.api.view.pending_uploads import PendingUploads
from tidemill.api.view.quotas import Quotas
from tidemill.api.view.sqlite import Database, page_rows, scanned_rows
from tidemill.api.view.throughput import Throughput
from tidemill.bounded_dict import BoundedDict
from tidemill.kafka.follower import Tail
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, Erasure, FileRecord
from tidemill.schemas.log.signing import Verifier
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.trouble import has_failures, is_stalled, late_at

DELETED_SECONDS_MAX = 86_400
"""How long the row of a deleted file still serves as a cursor, for clients that delete while paging."""

SHOWN_MAX = 1_024
SHOWN_BYTES_MAX = 8 << 10
"""Batches that are kept in memory: their number and size; some have long lists of errors."""

_log = logging.getLogger(__name__)

Record = tuple[str, bytes | None, int]
"""Key, value, offset."""


class View:
    """Reads are scoped by project; objects of other projects do not exist for them."""

    def __init__(self, database: Database, clock: Clock, verifier: Verifier) -> None:
        self._database = database
        self._clock = clock
        self._shown: BoundedDict[tuple[str, str], bytes] = BoundedDict(SHOWN_MAX)
        """Batches that clients poll, by project and id, as they are stored; reading one takes longer than the rest
        of a poll's own work."""
        batch_tables.renew_outdated(database, clock())
        self.claims = Claims(database, clock)
        self.uploads = PendingUploads(database, clock)
        self.erasures = Erasures(database)
        self.keyring = Keyring(database, verifier)
        self.ledger = Ledger(database)
        self.throughput = Throughput(database, clock)
        self.audit = Audit(database, clock)
        self.links = Links(database)
        self.quotas = Quotas(database, clock)
        self.orphans = Orphans(database, clock)
        self.changes = ChangeEvent()
        """Notified of the objects of each record."""
        self.feed = ChangeFeed()
        """Gets each changed batch and file."""
        self._purge()

    def batch(self, project: str, batch_id: str) -> bytes | None:
        """A batch as JSON."""
        if (shown := self._shown.use((project, batch_id))) is None:
            body = self._database.first("SELECT body FROM batches WHERE id = ? AND project = ?", batch_id, project)
            if body is None:
                return None
            shown = self.links.add_reruns(batch_id, body)
            if len(shown) <= SHOWN_BYTES_MAX:
                self._shown[project, batch_id] = shown
        return overlay.current(shown, self._clock())

    def batches(self, project: str, query: BatchesQuery) -> tuple[list[Row], str | None]:
        """Up to `query.limit` + 1 batches; a search reads a part of them, and returns where the next page begins.

        Raises:
            ApiError: 400, `query.after` is not a batch of the project.
        """
        now = self._clock()
        condition, values = query.condition(now)
        where, given, searched_to = f"project = ?{condition}", [project, *values], None
        options = {"project": project, "source": query.source, "body": "coalesce(listed, body)"}
        found: Iterable[tuple[str, bytes]]
        if (scan := query.scan()) is None:
            found = page_rows(self._database, "batches", where, given, query.page, **options)
        else:
            found, searched_to = scanned_rows(
                self._database, "batches", (where, given), scan, query.page, **options
            )
        # Drop outdated progress before measuring; the reruns added below can only make `of_page` cut more rows.
        rows = paging.fitting(Row(id=batch_id, body=overlay.current(body, now)) for batch_id, body in found)
        rerun = self.links.with_reruns([row.id for row in rows])
        bodies = (self.links.add_reruns(row.id, row.body) if row.id in rerun else row.body for row in rows)
        return [Row(id=row.id, body=body) for row, body in zip(rows, bodies, strict=True)], searched_to

    def file(self, project: str, file_id: str) -> FileRecord | None:
        """A file, unless it is deleted or expired."""
        rows = self._database.read(
            "SELECT body, key, sha256, lines, from_body FROM files WHERE id = ? AND project = ?"
            " AND deleted_at IS NULL AND (expires_at IS NULL OR expires_at > ?)",
            file_id, project, int(self._clock()),
        )  # fmt: skip
        if not rows:
            return None
        body, key, sha256, lines, from_body = rows[0]
        return FileRecord(
            project=project, file=File.model_validate_json(body), key=key, sha256=sha256, lines=lines,
            from_body=bool(from_body),
        )  # fmt: skip

    def knows_file(self, project: str, file_id: str) -> bool:
        """Whether a file exists or existed recently."""
        statement = "SELECT 1 FROM files WHERE id = ? AND project = ?"
        return self._database.first(statement, file_id, project) is not None

    def files(self, project: str, page: Page, purpose: str | None) -> list[Row]:
        """Up to `page.limit` + 1 files, of one purpose or of all.

        Raises:
            ApiError: 400, `page.after` is not one of them, and was not recently.
        """
        where, values = "project = ? AND deleted_at IS NULL", list[object]([project])
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, purpose]
        where += f" AND (expires_at IS NULL OR expires_at > {int(self._clock())})"
        found = page_rows(self._database, "files", where, values, page, project=project)
        return paging.fitting(Row(id=file_id, body=body) for file_id, body in found)

    def is_held(self, file_id: str) -> bool:
        """Whether the bytes of a deleted file are left, mostly for a batch that still runs."""
        return self._database.first("SELECT 1 FROM files WHERE id = ? AND held", file_id) is not None

    def needs_bytes(self, file_id: str) -> bool:
        """Whether a file exists, expired or not, or a batch still reads its bytes."""
        statement = "SELECT 1 FROM files WHERE id = ? AND deleted_at IS NULL"
        return self._database.first(statement, file_id) is not None or self.is_read(file_id)

    def is_read(self, file_id: str) -> bool:
        """Whether a batch that is not over reads a file."""
        return is_read(self._database, self._clock(), file_id)

    def batches_of(self, file_id: str) -> list[str]:
        """The batches of an input, if all of them have ended."""
        found = readers(self._database, self._clock(), file_id)
        return [reader.batch_id for reader in found] if all(reader.is_over for reader in found) else []

    def other_readers(self, file_id: str, batch_id: str) -> list[Reader]:
        """The batches with a file as their input, without this one."""
        found = readers(self._database, self._clock(), file_id)
        return [reader for reader in found if reader.batch_id != batch_id]

    def expired(self, limit: int) -> list[tuple[str, str]]:
        """Expired files that are not deleted yet: id and key."""
        return self._database.read(
            "SELECT id, key FROM files WHERE deleted_at IS NULL AND expires_at <= ? LIMIT ?",
            int(self._clock()), limit,
        )  # fmt: skip

    def is_expired(self, file_id: str) -> bool:
        """Whether a file is expired, and not deleted yet."""
        statement = "SELECT 1 FROM files WHERE id = ? AND deleted_at IS NULL AND expires_at <= ?"
        return self._database.first(statement, file_id, int(self._clock())) is not None

    def releasable(self, limit: int) -> list[tuple[str, str]]:
        """Deleted files whose bytes are left, and no batch reads them: id and key."""
        held = self._database.read("SELECT id, key FROM files INDEXED BY files_held WHERE held")
        return list(itertools.islice((row for row in held if not self.is_read(row[0])), limit))

    def hold(self, file_id: str, *, holds: bool) -> None:
        """Note whether the bytes of a deleted file are left, for this process to delete them some time."""
        statement = "UPDATE files SET held = ? WHERE id = ? AND deleted_at IS NOT NULL"
        self._database.write(statement, holds, file_id)

    def put_batch(self, record: BatchRecord) -> Batch:
        """Show a batch of the log, or of a command of this process, unless the view is ahead of it.

        Returns:
            The batch that the view shows.
        """
        if self.erasures.is_deleted(record.project, record.batch.id):
            return record.batch
        shown = self.batch(record.project, record.batch.id)
        if shown and record.owner and self._owner(record.batch.id) > record.owner:
            # Its writer had already lost the batch to another process.
            return Batch.model_validate_json(shown)
        before = Batch.model_validate_json(shown) if shown else None
        batch = overlay.merge(before, record.batch)
        self.throughput.add(record.project, before, batch)
        self._database.write(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET models = excluded.models, texts = excluded.texts,"
            " stalled = excluded.stalled, late_at = excluded.late_at, failures = excluded.failures,"
            " over = excluded.over, status = excluded.status, ended_at = excluded.ended_at,"
            " lines_left = excluded.lines_left, input_bytes = excluded.input_bytes,"
            " listed = excluded.listed, body = excluded.body,"
            " owner = max(owner, excluded.owner)",
            batch.id, record.project, batch.created_at, batch.input_file_id, batch.status.is_terminal,
            batch.status, batch.ended_at, self.quotas.lines_left(record.project, batch),
            batch.tidemill.input_bytes, record.owner, batch.endpoint, batch.tidemill.single,
            is_stalled(batch), late_at(batch), has_failures(batch),
            *overlay.searched(batch), overlay.listed(batch), batch.model_dump_json().encode(),
        )  # fmt: skip
        for changed in (batch.id, batch.tidemill.rerun_of):
            self._shown.pop((record.project, changed or ""), None)
        if not shown:
            # Links and labels never change.
            self.links.put(batch)
            for name, value in (batch.metadata or {}).items():
                self._database.write(
                    "INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?, ?)",
                    record.project, name, value, batch.created_at, batch.id,
                )  # fmt: skip
        self.feed.publish(record.project, "batch", batch.id)
        return batch

    def delete_batch(self, batch_id: str, erasure: Erasure) -> None:
        """Hide a deleted batch; later records of it change nothing."""
        with self._database.transaction():
            self.erasures.put(batch_id, erasure)
            self._drop_batch(batch_id)

    def mark_current(self) -> None:
        """Note that the view has the records of all compacted topics up to now."""
        batch_tables.mark_current(self._database, self._clock())

    def ended_before(self, before: int, limit: int) -> list[tuple[str, Batch]]:
        """Batches that ended before a time: project and batch."""
        rows = self._database.read(
            "SELECT project, body FROM batches WHERE over AND ended_at < ? LIMIT ?", before, limit
        )
        return [(project, Batch.model_validate_json(body)) for project, body in rows]

    def put_file(self, record: FileRecord, offset: int) -> None:
        """Show a file whose record is at this offset, unless a later one is known."""
        file = record.file
        self._database.write(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, key = excluded.key,"
            " sha256 = excluded.sha256, body = excluded.body, place = excluded.place, deleted_at = NULL, held = 0,"
            " bytes = excluded.bytes, lines = excluded.lines, owner = excluded.owner"
            " WHERE excluded.place > place AND excluded.owner >= owner",
            file.id, record.project, file.created_at, file.purpose, file.expires_at, record.key, record.sha256,
            file.model_dump_json().encode(), offset, file.bytes, record.lines,
            record.from_body, record.owner,
        )  # fmt: skip
        self.feed.publish(record.project, "file", file.id)

    def drop_file(self, file_id: str, offset: int) -> None:
        """Hide a file whose tombstone is at this offset; -1 if the broker did not return it."""
        self._database.write(
            "UPDATE files SET deleted_at = ?, place = max(place, ?), held = ?"
            " WHERE id = ? AND deleted_at IS NULL AND (? = -1 OR ? > place)",
            int(self._clock()), offset, self.is_read(file_id), file_id, offset, offset,
        )  # fmt: skip
        self._publish_gone("files", "file", file_id)

    def resume(self, topic: str, tail: Tail) -> int:
        """The offset to read a topic from; rows of another topic of this name, or of a longer one, are deleted."""
        self._shown.clear()
        with self._database.transaction():
            offset = self._next(topic)
            known = self._database.first("SELECT identity FROM topics WHERE name = ?", topic)
            if (is_other := bool(known) and not ids.is_same_topic(known, tail.identity)) or offset > tail.end:
                why = "belongs to another log" if is_other else "ends before the offset of the view"
                _log.warning("%s %s; folding it again", topic, why)
                for table in _TABLES[topic]:
                    self._database.write(f"DELETE FROM {table}")  # noqa: S608  a name of the table below
                offset = 0
            self._database.write("INSERT OR REPLACE INTO topics VALUES (?, ?, ?)", topic, offset, tail.identity)
        return offset

    def fold(self, topic: str, records: list[Record]) -> None:
        """Fold records of a topic in order, and store the next offset, in one transaction."""
        put = {
            topics.BATCHES.name: self._fold_batch,
            topics.FILES.name: self._fold_file,
            topics.CLAIMS.name: self.claims.fold,
            topics.UPLOADS.name: self.uploads.fold,
            topics.KEYS.name: self.keyring.fold,
            topics.SECRETS.name: self._fold_erasure,
            topics.LEDGER.name: self.ledger.fold,
            topics.AUDIT.name: lambda *record: self.changes.notify(self.audit.fold(*record)),
        }[topic]
        try:
            with self._database.transaction():
                for record in records:
                    try:
                        put(*record)
                        self.changes.notify(*record[0].split("/"))
                    except codec.DecodeError as error:
                        # The text may quote a value of a user, so it is not logged.
                        _log.warning("%s: record %d cannot be read (%s)", topic, record[2], type(error).__name__)
                self._database.write(
                    "INSERT INTO topics VALUES (?, ?, '') ON CONFLICT DO UPDATE SET next = excluded.next",
                    topic, records[-1][2] + 1,
                )  # fmt: skip
                if topic == topics.FILES.name:
                    self._settle()
        except BaseException:
            # The cache may have rows that the transaction read and never committed.
            self._shown.clear()
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _fold_batch(self, key: str, value: bytes | None, offset: int) -> None:
        del offset
        if value is None:
            self._drop_batch(key)
        elif (record := codec.decode_batch(value)).files_offset is None or record.files_offset < self._next(
            topics.FILES.name
        ):
            self._database.write("DELETE FROM waiting WHERE id = ? AND owner <= ?", key, record.owner)
            self.put_batch(record)
        else:
            # The view shows a batch as ended only with its files, whose records are on another topic.
            self._database.write(
                "INSERT INTO waiting VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET value = excluded.value,"
                " files_offset = excluded.files_offset, owner = excluded.owner WHERE excluded.owner >= owner",
                key, record.files_offset, value, record.owner,
            )  # fmt: skip

    def _owner(self, batch_id: str) -> int:
        """The generation of the owner that wrote the shown record."""
        return self._database.first("SELECT owner FROM batches WHERE id = ?", batch_id) or 0

    def _fold_erasure(self, key: str, value: bytes | None, offset: int) -> None:
        if "/" in key:
            # The record is an encryption key of a batch.
            return
        self.erasures.fold(key, value, offset)
        if value is not None:
            self._drop_batch(key)

    def _publish_gone(self, table: str, kind: str, object_id: str) -> None:
        project = self._database.first(f"SELECT project FROM {table} WHERE id = ?", object_id)  # noqa: S608  named above
        if project is not None:
            self.feed.publish(project, kind, object_id)

    def _drop_batch(self, batch_id: str) -> None:
        self._publish_gone("batches", "batch", batch_id)
        for table, column in (("batches", "id"), ("labels", "id"), ("waiting", "id")):
            self._database.write(f"DELETE FROM {table} WHERE {column} = ?", batch_id)  # noqa: S608  named above
        self.links.drop(batch_id)
        self.throughput.drop(batch_id)
        self._shown.clear()

    def _next(self, topic: str) -> int:
        """The offset that a topic is folded up to."""
        return self._database.first("SELECT next FROM topics WHERE name = ?", topic) or 0

    def _settle(self) -> None:
        """Show the batches whose files have arrived."""
        ready = self._database.read(
            "SELECT id, value FROM waiting WHERE files_offset < ?", self._next(topics.FILES.name)
        )
        for batch_id, value in ready:
            self.put_batch(codec.decode_batch(value))
            self.changes.notify(batch_id)
            self._database.write("DELETE FROM waiting WHERE id = ?", batch_id)

    def _fold_file(self, key: str, value: bytes | None, offset: int) -> None:
        if value is None:
            self.drop_file(key, offset)
            self._purge()
        else:
            self.put_file(codec.decode_file(value), offset)

    def _purge(self) -> None:
        oldest = int(self._clock()) - DELETED_SECONDS_MAX
        self._database.write("DELETE FROM files WHERE deleted_at < ? AND NOT held", oldest)


_TABLES = {
    topics.BATCHES.name: ("batches", "labels", "waiting", "reruns", "series", "throughput"),
    topics.FILES.name: ("files", "orphans"),
    topics.CLAIMS.name: ("claims",),
    topics.UPLOADS.name: ("uploads", "parts"),
    topics.KEYS.name: ("keys",),
    topics.SECRETS.name: ("erasures",),
    topics.LEDGER.name: ("ledger",),
    topics.AUDIT.name: ("audit", "sessions_ended"),
}
"""The tables that each topic is folded into."""
