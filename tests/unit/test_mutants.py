"""Checks the mutations that the simulations have to notice against the present code."""

from pathlib import Path

import pytest
from chaos.mutants import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_there_is_something_to_change(mutation):
    """The text that a mutation replaces occurs in its file once."""
    assert (ROOT / mutation.file).read_text("utf-8").count(mutation.old) == 1
    assert mutation.new != mutation.old
