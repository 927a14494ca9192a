"""The lines and results of a batch for each model that they name."""

from typing import Annotated

from pydantic import Field

from tidemill.schemas.bounds import BATCH_MODELS_MAX, Name, Number, Shape
from tidemill.schemas.resources.batch import Usage
from tidemill.schemas.resources.bill import Bill


class ModelLines(Shape):
    """The number of a batch's lines that name one model."""

    model: Name
    lines: Number
    copies: Number = 0
    """Lines that are not published, because they equal an earlier one."""


class ModelResult(Shape):
    """The lines of one model in an ended batch."""

    model: Name | None = None
    """None if the batch ended before its validation."""
    completed: Number
    failed: Number
    """Lines of the error file that were called."""
    copies: Number = 0
    """Completed lines that have the answer to an equal one. The operator's setting `bill_copies` says whether
    usage and bill contain them."""
    usage: Usage
    bill: Bill
    """The bill at the price when the files were written, which stays the price of the batch."""


ModelResults = Annotated[tuple[ModelResult, ...], Field(min_length=1, max_length=BATCH_MODELS_MAX)]
