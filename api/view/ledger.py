"""The ledger, folded from the log, and exact sums of it: tokens as integers, costs as decimals."""

from dataclasses import dataclass

from tidemill.api.view.sqlite import Database
from tidemill.schemas.log import codec
from tidemill.schemas.resources.bill import plain

DIMENSIONS = {"project": "project", "model": "model", "day": "day", "batch": "id"}
"""Dimensions of sums, and their columns."""


@dataclass(frozen=True, kw_only=True)
class LedgerQuery:
    """Which entries to sum, and how to group them."""

    project: str | None
    """None is all."""
    start: int
    """Batches that ended at this time or later, Unix seconds."""
    end: int
    """Batches that ended before this time."""
    by: tuple[str, ...] = ()
    """Keys of `DIMENSIONS`, in the order of grouping and sorting; none makes one sum."""
    after: tuple[str, ...] | None = None
    """The group that the page comes after."""
    limit: int = 1


@dataclass(frozen=True)
class Sum:
    """One group of entries; the fields are in the order of the columns."""

    group: tuple[str, ...]
    """Its value in each dimension of the query; empty for entries without a model."""
    batches: int
    lines: int
    copies: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    images: int
    audio_seconds: int
    cost: str
    cost_input: str
    cost_output: str
    cost_units: str


class Ledger:
    """Entries in the file of the view."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sums(self, query: LedgerQuery) -> list[Sum]:
        """Up to `query.limit` groups, in order. Call it in a thread: a million batches take 1.6 s."""
        columns = [DIMENSIONS[name] for name in query.by]
        where = "ended_at >= ? AND ended_at < ?"
        values: list[object] = [query.start, query.end]
        if query.project is not None:
            where, values = f"{where} AND project = ?", [*values, query.project]
        if query.after is not None and columns:
            where += f" AND ({', '.join(columns)}) > ({', '.join('?' * len(columns))})"
            values += query.after
        named = ", ".join(columns)
        batches = "count(*)" if "model" in query.by else "coalesce(sum(is_first), 0)"
        rows = self._database.read_apart(
            f"SELECT {''.join(f'{column}, ' for column in columns)}"  # noqa: S608  columns of the table above
            f" {batches}, coalesce(sum(lines), 0), coalesce(sum(copies), 0), coalesce(sum(input), 0),"
            " coalesce(sum(cached), 0),"
            " coalesce(sum(output), 0), coalesce(sum(reasoning), 0), coalesce(sum(images), 0),"
            " coalesce(sum(audio_seconds), 0),"
            # A custom aggregate of no rows is null.
            " coalesce(exact_sum(cost), '0'), coalesce(exact_sum(cost_input), '0'),"
            " coalesce(exact_sum(cost_output), '0'), coalesce(exact_sum(cost_units), '0')"
            f" FROM ledger WHERE {where} {f'GROUP BY {named} ORDER BY {named}' if columns else ''} LIMIT ?",
            *values, query.limit,
        )  # fmt: skip
        return [Sum(row[: len(columns)], *row[len(columns) :]) for row in rows]

    def has(self, batch_id: str, *, ended_before: float) -> bool:
        """Whether a batch has an entry, and ended before a time, Unix seconds."""
        statement = "SELECT 1 FROM ledger WHERE id = ? AND ended_at < ?"
        return self._database.first(statement, batch_id, int(ended_before)) is not None

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record of the topic; raises `DecodeError`."""
        del offset
        if value is None:
            self._database.write("DELETE FROM ledger WHERE id = ?", key)
            return
        entry = codec.decode_ledger(value)
        if self._database.first("SELECT 1 FROM ledger WHERE id = ? AND owner > ?", entry.batch_id, entry.owner):
            # That of a later owner of the batch, which may name other models.
            return
        self._database.write("DELETE FROM ledger WHERE id = ?", entry.batch_id)
        for number, one in enumerate(entry.models):
            usage, cost = one.usage, one.bill.cost
            self._database.write(
                # A record may name a model twice.
                "INSERT OR IGNORE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                entry.batch_id, entry.project, one.model or "", entry.day, entry.ended_at, one.completed,
                one.copies, usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens,
                usage.output_tokens_details.reasoning_tokens, usage.images or 0, usage.audio_seconds or 0,
                plain(cost.total), plain(cost.input), plain(cost.output), plain(cost.units), entry.owner,
                number == 0,
            )  # fmt: skip
