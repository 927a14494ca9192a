"""Acknowledges records of a partition, and holds back its fetching."""

from typing import Any

from tidemill.faust.stage_app import StageApp


class PartitionHandle:
    """One partition of an app.

    `Consumer.pause_partitions` is of no use: Faust 0.15.3 drops the records of a paused partition that it has
    fetched already, and then takes the hole for acknowledged, so they are lost for good. What Faust itself does
    when a buffer is full keeps them: they still come, and nothing more is fetched.
    """

    def __init__(self, app: StageApp, tp: Any) -> None:
        self._app = app
        self._tp = tp

    def ack(self, token: Any) -> None:
        """Acknowledge a record, unless the partition has had another owner since it came."""
        if token.message.generation_id == self._app.consumer_generation_id:
            token.ack()

    def pause(self) -> None:
        """Fetch no more; what has been fetched still comes."""
        self._app.consumer.on_buffer_full(self._tp)

    def resume(self) -> None:
        """Fetch again."""
        self._app.consumer.on_buffer_drop(self._tp)
