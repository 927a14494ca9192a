"""The bill of a batch, in exact decimals and with its price.

Amounts have no currency: they are in the unit of the operator's prices.
"""

import datetime as dt
from decimal import Context, Decimal, localcontext
from typing import Annotated, Final

from pydantic import Field, PlainSerializer

from tidemill.schemas.bounds import AMOUNT_DIGITS_MAX, Shape

DIGITS_MAX: Final = AMOUNT_DIGITS_MAX
"""Digits of a sum or a product: more than prices and tokens need, so that nothing is rounded."""
UNIT_DIGITS: Final = 12
"""Decimals of the cost of audio."""
_MILLION: Final = 1_000_000


def plain(amount: Decimal) -> str:
    """An amount without an exponent and trailing zeros."""
    text = f"{amount:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


Amount = Annotated[
    Decimal,
    Field(max_digits=DIGITS_MAX, allow_inf_nan=False),
    PlainSerializer(plain, return_type=str, when_used="json"),
]


class Tariff(Shape):
    """The price when a batch ended."""

    input_per_million: Amount = Decimal(0)
    output_per_million: Amount = Decimal(0)
    per_image: Amount = Decimal(0)
    per_audio_minute: Amount = Decimal(0)
    discount: Amount = Decimal(0)
    """Share of the price that is taken off."""


class Cost(Shape):
    """The cost of a batch after the discount: `total` = `input` + `output` + `units`."""

    total: Amount
    input: Amount
    output: Amount
    units: Amount = Decimal(0)
    """The cost of images and audio."""
    discount: Amount
    """Share of the base price that was taken off."""

    def __add__(self, other: "Cost") -> "Cost":
        """The cost of both, for models of one batch, which have the same discount."""
        with localcontext(exact()):
            return Cost(
                total=self.total + other.total,
                input=self.input + other.input,
                output=self.output + other.output,
                units=self.units + other.units,
                discount=self.discount,
            )


class Bill(Shape):
    """The price and the cost of a batch."""

    tariff: Tariff
    cost: Cost


def exact() -> Context:
    """A context in which sums and products of amounts are not rounded."""
    return Context(prec=DIGITS_MAX)


class ExactSum:
    """An aggregate function of SQLite: the exact sum of amounts that are stored as text."""

    def __init__(self) -> None:
        """Begin with 0."""
        self._sum = Decimal(0)
        self._add = exact().add

    def step(self, amount: str) -> None:
        """Add an amount."""
        self._sum = self._add(self._sum, Decimal(amount))

    def finalize(self) -> str:
        """The sum."""
        return plain(self._sum)


def bill(
    input_tokens: int, output_tokens: int, tariff: Tariff, *, images: int = 0, audio_seconds: int = 0
) -> Bill:
    """The bill for these tokens, which include cached and reasoning tokens, and these units, at a price."""
    with localcontext(exact()):
        share = 1 - tariff.discount
        read = input_tokens * tariff.input_per_million * share / _MILLION
        written = output_tokens * tariff.output_per_million * share / _MILLION
        # Multiply before the division: a sixtieth of a minute's price may not be exact.
        made = images * tariff.per_image * share + _sixtieth(audio_seconds * tariff.per_audio_minute * share)
        total = read + written + made
        cost = Cost(total=total, input=read, output=written, units=made, discount=tariff.discount)
    return Bill(tariff=tariff, cost=cost)


def _sixtieth(amount: Decimal) -> Decimal:
    """A sixtieth, rounded to `UNIT_DIGITS` decimals if it is not finite."""
    return (amount / 60).quantize(Decimal(1).scaleb(-UNIT_DIGITS)) if amount else Decimal(0)


def day_of(at: int) -> str:
    """The day of a time in UTC, `2026-11-23`."""
    return dt.datetime.fromtimestamp(at, dt.UTC).date().isoformat()
