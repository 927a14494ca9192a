"""A record of the intake as it has arrived, and the lines it brings."""

import dataclasses

from tidemill.ingest.flow import Ack
from tidemill.schemas import intake


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A record, and how to acknowledge it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    ack: Ack
    logged_at: float | None = None
    """When the broker appended it, Unix seconds; None where the topic keeps its producer's time instead."""

    @property
    def shown(self) -> "Arrival":
        """The record as it may be shown to an operator: without its credential."""
        kept = tuple((name, content) for name, content in self.headers if name.lower() != intake.AUTHORIZATION)
        return dataclasses.replace(self, headers=kept)


def split(value: bytes) -> list[bytes]:
    """The lines of a record, without the whitespace around them; blank ones are left out."""
    return [line for found in value.split(b"\n") if (line := found.strip(b" \t\r"))]


def joined_bytes(lines: list[bytes]) -> int:
    """What the lines take in a file, each with its newline."""
    return sum(map(len, lines)) + len(lines)
