"""Bills are exact."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.resources.bill import Bill, Tariff, bill, day_of, plain

prices = st.decimals(0, 10_000, places=10)
shares = st.decimals(0, 1, places=10)
tokens = st.integers(0, 10**15)


@given(tokens, tokens, prices, prices, shares)
def test_a_cost_is_the_product_to_the_last_digit(read, written, input_price, output_price, discount):
    """No digit is rounded, and a bill reads back as it was written."""
    tariff = Tariff(input_per_million=input_price, output_per_million=output_price, discount=discount)
    made = bill(read, written, tariff)
    share = (1 - Fraction(discount)) / 1_000_000
    assert Fraction(made.cost.input) == read * Fraction(input_price) * share
    assert Fraction(made.cost.output) == written * Fraction(output_price) * share
    assert Fraction(made.cost.total) == Fraction(made.cost.input) + Fraction(made.cost.output)
    assert Bill.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0", "0"), ("0.10", "0.1"), ("1E-7", "0.0000001"), ("1E+3", "1000"), ("100", "100"), ("0.000", "0")],
)
def test_amounts_are_plain_digits(amount, text):
    """No exponent and no zeros at the end."""
    assert plain(Decimal(amount)) == text


def test_half_of_the_price_of_a_batch():
    """As it is shown."""
    tariff = Tariff(input_per_million="0.1", output_per_million="0.4", discount="0.5")
    assert bill(1_000, 10, tariff).cost.model_dump(mode="json") == {
        "total": "0.000052", "input": "0.00005", "output": "0.000002", "units": "0",
        "discount": "0.5",
    }  # fmt: skip


def test_images_and_audio_have_prices_of_their_own():
    """A minute's price has no exact sixtieth, so that cost is rounded; the sum is that of the parts."""
    tariff = Tariff(input_per_million="1", per_image="0.02", per_audio_minute="0.1", discount="0.5")
    cost = bill(1_000_000, 0, tariff, images=3, audio_seconds=61).cost
    assert (plain(cost.input), plain(cost.units)) == ("0.5", "0.080833333333")
    assert cost.total == cost.input + cost.units


def test_a_day_is_in_utc():
    """The second before midnight and midnight."""
    assert (day_of(1_790_035_199), day_of(1_790_035_200)) == ("2026-09-21", "2026-09-22")
