"""Runs inputs that reached new code in fuzzing, and some random ones.

`make fuzz` looks for more (tests/fuzz).
"""

from pathlib import Path

import pytest
from fuzz.targets import TARGETS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name):
    """Each input that was kept, and those that fuzzing begins with."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    for data in [*seeds(name), *kept]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50)
@given(data=st.data())
def test_at_random(name, data):
    """Bytes out of nothing, and a seed with a stretch of it replaced."""
    seed = data.draw(st.sampled_from(list(seeds(name))))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, len(seed)))
    TARGETS[name](seed[:start] + data.draw(st.binary(max_size=40)) + seed[end:])


def test_every_target_has_a_corpus():
    """A target that was never fuzzed is not one."""
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
