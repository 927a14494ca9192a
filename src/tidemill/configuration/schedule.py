"""Settings of hours in which a backend has a limit of concurrent calls."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from tidemill.configuration.misconfigured import Table

MINUTES_OF_AN_HOUR = 60


def _minute(text: object) -> object:
    if not isinstance(text, str):
        return text
    hours, _, minutes = text.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(minutes) < MINUTES_OF_AN_HOUR):
        raise ValueError(f"{text!r} is not a time of the form HH:MM")
    return int(hours) * MINUTES_OF_AN_HOUR + int(minutes)


Minute = Annotated[int, BeforeValidator(_minute), Field(ge=0, le=1440)]


class Hours(Table):
    """A time of day in which a backend has a limit of concurrent calls."""

    start: Annotated[Minute, Field(alias="from")]
    """`HH:MM`, in UTC."""
    end: Annotated[Minute, Field(alias="to")]
    """`HH:MM`, exclusive; if before `from`, of the next day."""
    days: tuple[Annotated[int, Field(ge=1, le=7)], ...] = (1, 2, 3, 4, 5, 6, 7)
    """Days of the week on which the time begins; 1 is Monday."""
    max_in_flight: Annotated[int, Field(ge=0)]
    """Concurrent calls; 0 leaves the backend to other users."""
