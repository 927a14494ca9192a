"""Facts that the state of a batch keeps: early ones, and the one that ends a small batch."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from tidemill.schemas.bounds import NUMBER_MAX, Name, Number
from tidemill.schemas.log.messages import (
    Accepted,
    CancelRequested,
    Compacted,
    DeadLettered,
    Ended,
    Grown,
    Rejected,
    Sealed,
)
from tidemill.schemas.resources.batch import FileReceipt, Receipt
from tidemill.schemas.resources.by_model import ModelResult

LETTER_PLACES_MAX: Final = 16
"""Partitions of topics whose last dead letter a batch remembers; its records lie in one of each topic."""

Letters = Annotated[dict[Name, Number], Field(max_length=LETTER_PLACES_MAX)]
"""The offset of a batch's last dead letter in each partition of a topic."""

EarlyFact = Accepted | Rejected | Grown | Ended | Sealed | CancelRequested | DeadLettered


class Early(BaseModel):
    """Facts that came before the batch was created, in the order to apply them: one of each kind."""

    model_config = ConfigDict(frozen=True)

    accepted: Accepted | None = None
    rejected: Rejected | None = None
    grown: Grown | None = None
    ended: Ended | None = None
    sealed: Sealed | None = None
    cancel_requested: CancelRequested | None = None
    dead_lettered: DeadLettered | None = None

    def with_(self, fact: EarlyFact) -> "Early":
        """These facts and another one; the first of a kind counts, or the largest `Grown`."""
        known = getattr(self, fact.kind)
        if known is None or (isinstance(fact, Grown) and fact.total > known.total):
            return self.model_copy(update={fact.kind: fact})
        return self


def with_letter(letters: Letters, source: str) -> Letters | None:
    """The last dead letters with another one; None if that does not count as new.

    Records come again in order, so a letter before the last one is known. But a record that was held may become a
    dead letter after a later record of its batch: the batch does not show it, and only `tidemill.dead` has it.
    """
    place, _, offset = source.rpartition("/")
    number = min(int(offset), NUMBER_MAX) if offset.isdecimal() else 0
    if number <= letters.get(place, -1):
        return None
    others = [(known, last) for known, last in letters.items() if known != place]
    return dict([*others, (place, number)][-LETTER_PLACES_MAX:])


class _Files(Receipt):
    outputs: Annotated[tuple[FileReceipt, ...], Field(max_length=0)] = ()


class Written(Compacted):
    """The fact that ends a small batch, which has one model and an output in one file."""

    models: Annotated[tuple[ModelResult, ...], Field(min_length=1, max_length=1)]
    receipt: _Files
