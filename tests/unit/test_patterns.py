"""Regular expressions whose time grows with the square of the text: long text blocks the event loop."""

import functools
import importlib
import pkgutil
import re
from re import _constants as codes
from re import _parser as parser

import pytest
from pydantic_core import PydanticCustomError

import tidemill
from tidemill.api.requests.reading import whole

ASCII = [chr(code) for code in range(128)]
REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT}


@functools.cache
def category(code):
    """The characters of a class like a digit."""
    sign = str(code).removeprefix("CATEGORY_")
    letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[sign.removeprefix("NOT_")]
    return {char for char in ASCII if re.match("\\" + (letter.upper() if "NOT_" in sign else letter), char)}


def chars(node):
    """The characters that a node of a pattern may match, if it matches one each time; else none."""
    code, value = node
    if code is codes.ANY:
        return set(ASCII)
    if code in {codes.LITERAL, codes.NOT_LITERAL}:
        return {chr(value)} if code is codes.LITERAL else set(ASCII) - {chr(value)}
    if code is codes.CATEGORY:
        return category(value)
    if code is codes.RANGE:
        return {char for char in ASCII if value[0] <= ord(char) <= value[1]}
    if code is codes.IN:
        listed = set().union(*(chars(one) for one in value if one[0] is not codes.NEGATE))
        return set(ASCII) - listed if value[0][0] is codes.NEGATE else listed
    return set()


def ambiguous(nodes, before=frozenset()):
    """Whether two endless repetitions that may match the same characters touch, and what the last one matches."""
    for code, value in nodes:
        if code is codes.SUBPATTERN:
            found, before = ambiguous(value[-1], before)
        elif code in REPEATS:
            least, most, body = value
            matched = chars(body[0]) if len(body) == 1 and most is codes.MAXREPEAT else set()
            found = bool(matched & before) or ambiguous(body)[0]
            before = matched if least else before | matched
        else:
            found = code is codes.BRANCH and any(ambiguous(branch, before)[0] for branch in value[1])
            before = before if code is codes.AT else frozenset()
        if found:
            return True, before
    return False, before


def patterns():
    """All patterns that a module compiles as it is imported."""
    for module in pkgutil.walk_packages(tidemill.__path__, "tidemill."):
        if not module.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, re.Pattern):
                    yield f"{module.name}.{name}", value


@pytest.mark.parametrize(
    ("pattern", "is_ambiguous"),
    [
        (r"0*(\d+)\Z", True),
        (r"=\s*(\d{0,18})\s*-", True),
        (r"(?:a|b\w*\d+)", True),
        (r"0*+(\d+)\Z", False),
        (r"\s*\d+\s*", False),
        (r"[^=]*=.*", False),
    ],
)
def test_ambiguous_patterns_are_recognized(pattern, is_ambiguous):
    """Possessive repetitions never give back what they matched."""
    assert ambiguous(parser.parse(pattern))[0] is is_ambiguous


def test_no_pattern_is_ambiguous():
    """Each would take most of a minute for 64 KiB."""
    found = dict(patterns())
    assert len(found) > 30
    assert not [name for name, one in found.items() if ambiguous(parser.parse(one.pattern, one.flags))[0]]


def test_leading_zeros_of_an_integer_do_not_count():
    """Neither as digits nor in time."""
    many = "0" * 65_536
    assert (whole("-" + many + "7"), whole(many), whole("+0")) == (-7, 0, 0)
    assert whole("0" * 41 + "9" * 50) == int("9" * 40)
    with pytest.raises(PydanticCustomError):
        whole(many + "x")
