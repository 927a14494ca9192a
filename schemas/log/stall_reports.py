"""The reports of a process that say why its lines of a batch wait."""

import itertools
import secrets
from typing import Final

from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.resources.waiting import Waiting

HOLD_SECONDS: Final = 60
"""How long a report is valid by default: several times the longest pause between two attempts."""


class StallReports:
    """The reports of one source."""

    def __init__(self, subject: str, *, model: str = "") -> None:
        """`subject` begins the id of the source; `model` is that of all its lines, if it has lines of only one."""
        self._source = f"{subject}-{secrets.token_hex(8)}"
        self._model = model
        self._numbers = itertools.count()

    def on(self, batch_id: str, *waiting: Waiting, hold_seconds: int = HOLD_SECONDS) -> Stalled:
        """The next report on a batch, which replaces earlier ones; without a reason, no line of it waits."""
        return Stalled(
            batch_id=batch_id,
            source=self._source,
            number=next(self._numbers),
            model=self._model,
            waiting=waiting,
            hold_seconds=hold_seconds,
        )
