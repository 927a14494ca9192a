"""Dead letters: the content of a record, and the record made from it again."""

import pytest

from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.log import dead_letters
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.dead_letters import DeadLetter, RequeueMark

SOURCE = "tidemill.outcomes/2/17"
OWN = [("tidemill-kind", b"lines"), ("tidemill-batch", b"batch_1")]


def written(own=OWN, key=b"k"):
    return dead_letters.headers(SOURCE, own, key=key, stage="results", reason="it is broken")


def test_key_and_headers_come_back():
    """A letter holds all that its record was."""
    letter = dead_letters.decode(written(), b"value", 5.0)
    assert letter == DeadLetter(
        id=SOURCE, topic="tidemill.outcomes", stage="results", reason="it is broken", key=b"k", value=b"value",
        headers=tuple(OWN), cut_bytes=None, at=5.0,
    )  # fmt: skip
    assert dead_letters.requeue_headers(letter) == [*OWN, (dead_letters.REQUEUED, SOURCE.encode())]


def test_a_record_without_key_and_value():
    """Neither is made up."""
    letter = dead_letters.decode(written(key=None), None, 0.0)
    assert (letter.key, letter.value) == (None, None)


def test_a_second_death_replaces_the_headers_of_the_first():
    """What was said by an earlier death is not kept, and the mark is renewed."""
    first = dead_letters.decode(written(), b"v", 0.0)
    again = dead_letters.headers("t/0/9", dead_letters.requeue_headers(first), key=b"k", stage="s", reason="r")
    second = dead_letters.decode(again, b"v", 0.0)
    assert second.id == "t/0/9"
    assert dead_letters.requeue_headers(second) == [*OWN, (dead_letters.REQUEUED, b"t/0/9")]


def test_a_mark_is_no_letter():
    """It says which letter was sent again."""
    assert dead_letters.decode(dead_letters.mark_headers(SOURCE), None, 3.0) == RequeueMark(id=SOURCE, at=3.0)


@pytest.mark.parametrize(
    "headers", [[], [(dead_letters.SOURCE, b"")], [(dead_letters.SOURCE, b"/0/1")], [("x", None)]]
)
def test_other_records_are_not_letters(headers):
    """It is said, not guessed."""
    with pytest.raises(DecodeError):
        dead_letters.decode(headers, b"", 0.0)


def test_headers_beyond_the_bound_are_dropped():
    """Headers beyond the bound are left out, and the rest still fits a record."""
    own = [("a", b"x" * dead_letters.HEADERS_BYTES_MAX), ("b", b"y")]
    headers = dead_letters.headers(
        SOURCE, own, key=b"k" * 2 * dead_letters.HEADERS_BYTES_MAX, stage="s", reason="r" * 10_000
    )
    size = sum(len(name) + len(content) for name, content in headers)
    assert size + dead_letters.VALUE_BYTES_MAX < 1 << 20


def test_many_headers_fit_too():
    """Each takes some bytes, even if its name and value are empty; a name counts in UTF-8."""
    for own in ([("", None)] * 100_000, [("é" * 100, b"")] * 1000):
        said = dead_letters.headers(SOURCE, own, key=b"k" * 100_000, stage="s", reason="\udcff" * 10_000)
        size = sum(12 + len(name.encode()) + len(content or b"") for name, content in said)
        assert size + dead_letters.VALUE_BYTES_MAX + RECORD_BYTES_EXTRA < RECORD_BYTES_MAX
