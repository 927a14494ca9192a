"""Progress of all parts of a table as one bar."""

from collections.abc import Iterable

from tidemill.client.progress import Display
from tidemill.schemas.resources.batch import RequestCounts, Status
from tidemill.schemas.resources.waiting import Waiting, Waits


class Whole:
    """The progress of a table, shown on a display; `total` is the number of its rows, if it is known."""

    def __init__(self, display: Display, name: str, total: int | None) -> None:
        self._display, self._name, self._total = display, name, total
        display.unit = "row"
        self._counts: dict[int, RequestCounts] = {}
        self._waits: dict[int, Waits] = {}

    def of(self, part: int, rows: int, lines: int) -> "PartDisplay":
        """The display of a part."""
        self.see(part, RequestCounts(total=rows, failed=rows - lines))
        return PartDisplay(self, part, rows - lines)

    def see(self, part: int, counts: RequestCounts) -> None:
        """Update a part."""
        self._counts[part] = counts
        found = sum(self._counts.values(), start=RequestCounts())
        found = found.model_copy(update={"total": max(found.total, self._total or 0)})
        self._display.lines(self._name, Status.IN_PROGRESS, found)

    def wait(self, part: int, waits: Waits) -> None:
        """Update why the lines of a part wait."""
        self._waits[part] = waits
        self._display.waits(wait for waits in self._waits.values() for wait in waits)


class PartDisplay(Display):
    """Adds the lines of a part to those of the table; `unasked` rows of it have failed already."""

    def __init__(self, whole: Whole, part: int, unasked: int) -> None:
        self._whole, self._part, self._unasked = whole, part, unasked

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Update the lines of the batch; the status of one part is not that of the table."""
        del name, status
        if counts.total:
            self._whole.see(self._part, counts + RequestCounts(total=self._unasked, failed=self._unasked))

    def waits(self, waits: Iterable[Waiting]) -> None:
        """Update the reasons why lines wait."""
        self._whole.wait(self._part, tuple(waits))
