"""Marks at the partitions of a group's topic, which one member leaves for another.

A mark is the metadata of a committed offset. The broker takes it from each member of the group with the current
generation, also for partitions of others. The topic has no records, so its offsets mean nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from faust.types import TP

from tidemill.faust.stage_app import StageApp


class _Offset(NamedTuple):
    offset: int
    metadata: str


class Marks:
    """The marks of one topic."""

    def __init__(self, app: StageApp, topic: str) -> None:
        self._app = app
        self._topic = topic

    async def write(self, marks: Mapping[int, str]) -> None:
        """Set the marks of some partitions; an empty text removes one.

        Raises:
            Exception: The process is no member of the group, or its coordinator refuses.
        """
        await self._coordinator.commit_offsets(
            None, {TP(self._topic, number): _Offset(0, text) for number, text in marks.items()}
        )

    async def read(self, numbers: Iterable[int]) -> dict[int, str]:
        """The marks of those of these partitions that have one.

        Raises:
            Exception: The coordinator refuses.
        """
        found = await self._coordinator.fetch_committed_offsets([TP(self._topic, number) for number in numbers])
        return {tp.partition: offset.metadata for tp, offset in found.items() if offset.metadata}

    @property
    def _coordinator(self) -> Any:
        return self._app.consumer._thread._consumer._coordinator  # noqa: SLF001  not public
