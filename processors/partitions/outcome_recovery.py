"""Decides which outcomes a process must read before it calls the lines of an assigned partition.

The previous owner may have called some lines of the records after its last commit and before the partition's end
at the assignment. It may also have called copies of those lines beyond that end, which a restarted ingest
publishes. No other process has called lines that lie beyond the end and belong to a batch younger than the
assignment (`assignment.py`).

Any other record waits until the outcomes of its batch have been read. All of them are in one partition of
`outcomes`, and none is older than the batch. So one number for each partition is enough: the time since which it
has been read. The previous owner delivered its outcomes before it left the partition, or died; so a read after the
assignment finds all of them, and later outcomes of these lines come from this process.

A call that was in flight when its process died left no outcome, and is made again.
"""

from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS


class OutcomeRecovery:
    """Since which time each partition of `outcomes` has been read, after the last assignment."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._wanted: dict[int, float] = {}

    def reset(self) -> None:
        """Forget everything: other processes may have called lines of the newly assigned partitions."""
        self._since.clear()
        self._wanted.clear()

    def knows(self, partition: int, timestamp: float) -> bool:
        """Whether the outcomes of a record have been read; if not, adds them to `wanted`.

        Args:
            partition: The partition of `outcomes` that its batch falls into.
            timestamp: Unix time of the record.
        """
        # If clocks differ, a result may seem older than its request.
        since = timestamp - CLOCK_SKEW_SECONDS
        if partition in self._since and self._since[partition] <= since:
            return True
        self._wanted[partition] = min(since, self._wanted.get(partition, since))
        return False

    def wanted(self) -> dict[int, float]:
        """The partitions to read, each from a Unix time on."""
        return dict(self._wanted)

    def recovered(self, since: dict[int, float]) -> None:
        """Note that these partitions have been read up to an end that they had after the assignment."""
        for partition, time in since.items():
            self._since[partition] = min(time, self._since.get(partition, time))
            if self._wanted.get(partition, time) >= time:
                self._wanted.pop(partition, None)
