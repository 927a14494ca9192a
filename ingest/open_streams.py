"""The open streams of direct producers, as `tidemill.batches` shows them: those of all partitions."""

from typing import NamedTuple

from tidemill.ingest.batch_records import BatchSummary


class OpenStream(NamedTuple):
    """An open stream."""

    batch_id: str
    partition: int
    """Its partition of `tidemill.intake`."""


class OpenStreams:
    """All open streams; the limits of projects bound their number."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, str]] = {}
        """Project and stream by batch id."""
        self._partitions: dict[tuple[str, str], dict[str, int]] = {}
        """By project and stream: the partition of each batch."""

    def apply(self, batch_id: str, record: BatchSummary) -> None:
        """Apply a record of `tidemill.batches`."""
        extras = record.batch.tidemill
        if extras.stream is None or extras.stream_partition is None or not record.batch.accepts_records:
            self.drop(batch_id)
            return
        name = self._names[batch_id] = record.project, extras.stream
        self._partitions.setdefault(name, {})[batch_id] = extras.stream_partition

    def drop(self, batch_id: str) -> None:
        """Forget a batch."""
        if (name := self._names.pop(batch_id, None)) is None:
            return
        left = self._partitions[name]
        del left[batch_id]
        if not left:
            del self._partitions[name]

    def elsewhere(self, project: str, stream: str, partition: int) -> OpenStream | None:
        """A stream of this name in another partition; None if there is none."""
        for batch_id, other in self._partitions.get((project, stream), {}).items():
            if other != partition:
                return OpenStream(batch_id, other)
        return None
