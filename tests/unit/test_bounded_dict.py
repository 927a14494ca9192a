"""A dict of bounded size forgets the entry that was not used for longest."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from tidemill.bounded_dict import BoundedDict

MOST = 3
keys = st.sampled_from("abcdef")


@given(st.lists(st.tuples(st.sampled_from(["set", "use", "pop", "read", "setdefault"]), keys)))
def test_the_entries_are_those_used_last(steps):
    """As in a list of keys by their last use; a plain read is no use."""
    found, order = BoundedDict[str, str](MOST), []
    for step, key in steps:
        is_known = key in order
        match step:
            case "use":
                assert found.use(key) == (key if is_known else None)
            case "set":
                found[key] = key
            case "pop":
                assert found.pop(key, None) == (key if is_known else None)
            case "setdefault":
                assert found.setdefault(key, key) == key
            case _:
                assert found.get(key) == (key if is_known else None)
        if step == "pop":
            order = [each for each in order if each != key]
        elif step == "set" or (step == "use" and is_known) or (step == "setdefault" and not is_known):
            order = [*(each for each in order if each != key), key][-MOST:]
        assert list(found) == order


def test_it_is_an_ordered_dict():
    """Which finds its first entry at once, however many before it were deleted."""
    assert isinstance(BoundedDict(1), OrderedDict)
