"""Ids: their form and their order."""

import itertools
import re
from functools import partial

import pytest

from tidemill.schemas import ids
from tidemill.schemas.resources import access

MADE = 1_000
START_NS = 1_795_445_312_000_000_000


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (ids.new_batch_id, r"batch_[0-9a-f]{32}\Z"),
        (partial(ids.new_file_id, "p"), r"file-[0-9A-Za-z]{22}\Z"),
        (access.new_key_id, r"key_[0-9a-f]{32}\Z"),
    ],
)
def test_new_ids_are_all_different_and_in_the_order_of_their_time(make, form, monkeypatch):
    """A list goes by `created_at`, then by id; so what was made within one second is in order too."""
    times = itertools.count(START_NS, 1_000)
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    found = [make() for _ in range(MADE)]
    assert all(re.match(form, made) for made in found)
    assert found == sorted(found)


def test_a_batch_is_named_by_its_id_or_by_either_end_of_it():
    """At least four digits of it; other text names only an equal id."""
    batch_id = "batch_0123" + "0" * 24 + "cdef"
    for text in (batch_id, "0123", "batch_0123", "cdef", batch_id[-31:]):
        assert ids.names_batch(text, batch_id), text
    for text in ("", "batch_", "def", "0000", "batch_" + "0" * 32, "cde", "CDEF"):
        assert not ids.names_batch(text, batch_id), text


def test_ids_of_one_microsecond_differ(monkeypatch):
    """Two processes may make one at the same time."""
    monkeypatch.setattr("time.time_ns", lambda: START_NS)
    for make in (ids.new_batch_id, partial(ids.new_file_id, "p"), access.new_key_id):
        assert len({make() for _ in range(MADE)}) == MADE
