"""What must be read back from `outcomes` before a lane may call.

A process that takes over a partition gets records that the one before it has partly worked on: those after the
last commit and before the end of the log at that moment, and copies of such records, which ingest publishes beyond
that end when it is started again. What is beyond it and of a batch that is younger nobody has seen
(`assignment.py`).

Any other record waits until the outcomes of its batch are known. They are all in one partition of `outcomes`, the
one its key falls into, and none of them is older than the batch itself. So one number a partition is enough: the
time from which on it has been read. Reading starts after the partition was assigned, and the owner before has
delivered its outcomes before it let go (or it is dead), so what is read once stays complete: from then on the
outcomes of these lines come from here, and the ledger has them.

What a call was in flight for when its process died is on no log, and is called again.
"""

from typing import Final

CLOCK_SKEW_SECONDS: Final = 60.0
"""Clocks of machines may differ by so much: a result may seem older than its request."""


class OutcomeRecovery:
    """From which time on each partition of `outcomes` has been read, since the last assignment."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._wanted: dict[int, float] = {}

    def reset(self) -> None:
        """The partitions are assigned anew: others may have worked on them."""
        self._since.clear()
        self._wanted.clear()

    def knows(self, partition: int, timestamp: float) -> bool:
        """Whether the outcomes of a record are known; if not, they are wanted from now on.

        Args:
            partition: Where the outcomes of its batch are.
            timestamp: Unix time of the record.
        """
        since = timestamp - CLOCK_SKEW_SECONDS
        if partition in self._since and self._since[partition] <= since:
            return True
        self._wanted[partition] = min(since, self._wanted.get(partition, since))
        return False

    def wanted(self) -> dict[int, float]:
        """The partitions to read, and from which time on."""
        return dict(self._wanted)

    def read(self, since: dict[int, float]) -> None:
        """These have been read, up to the end they had after the assignment."""
        for partition, time in since.items():
            self._since[partition] = min(time, self._since.get(partition, time))
            if self._wanted.get(partition, time) >= time:
                self._wanted.pop(partition, None)
