"""Addresses of buckets: what is one, and which folders bound it."""

from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.buckets import FOLDER_BYTES_MAX, KEY_BYTES_MAX, AddressError, parse_folder, parse_object

PARTS = st.text(st.sampled_from("ab.-%/\\ é\uff0e\u2024\0"), min_size=0, max_size=6)


@pytest.mark.parametrize(
    "text",
    [
        "http://lake/in/a", "s3:/lake/in/a", "S3://lake/in/a", "lake/in/a",
        "s3:///in/a", "s3://la/in", "s3://Lake/in/a", "s3://-lake/in/a", "s3://la..ke/in/a", "s3://user@lake/in/a",
        "s3://lake:9000/in/a", "s3://lake/in/../a", "s3://lake/./a", "s3://lake//a", "s3://lake/in//a",
        "s3://lake/in/%2e%2e/a", "s3://lake/in/%252e/a", "s3://lake/in\\..\\a", "s3://lake/in/\n", "s3://lake/in/\0a",
        "s3://lake/in/\uff0e\uff0e/a", "s3://lake/in\uff0fa", "s3://lake", "s3://lake/", "s3://lake/in/",
        f"s3://lake/{'a' * (KEY_BYTES_MAX + 1)}", f"s3://lake/{'é' * (KEY_BYTES_MAX // 2 + 1)}",
    ],
)  # fmt: skip
def test_what_is_no_object(text):
    """Also what another reader of the address could take for a different one."""
    with pytest.raises(AddressError):
        parse_object(text)


@pytest.mark.parametrize(
    "text", ["s3://lake/in/a b.jsonl", "s3://my.lake-2/a", "s3://lake/é/日本", "s3://lake/a?b#c"]
)
def test_an_object_keeps_its_name(text):
    """Nothing is decoded or cut off."""
    assert str(parse_object(text)) == text


def test_a_folder_may_end_with_a_slash():
    """A whole bucket is a folder, too."""
    assert parse_folder("s3://lake/out/") == parse_folder("s3://lake/out")
    assert parse_folder("s3://lake/") == parse_folder("s3://lake")
    for text in ("s3://lake/out//", f"s3://lake/{'a' * (FOLDER_BYTES_MAX + 1)}"):
        with pytest.raises(AddressError):
            parse_folder(text)


@pytest.mark.parametrize(
    ("text", "is_within"),
    [
        ("s3://lake/in/a", True), ("s3://lake/in/b/a", True), ("s3://lake/in", True),
        ("s3://lake/in-other/a", False),
        ("s3://lake/inn", False), ("s3://lake/i", False), ("s3://lake2/in/a", False), ("s3://lak/in/a", False),
        ("s3://lake/other/in/a", False), ("s3://lake/IN/a", False),
    ],
)  # fmt: skip
def test_a_folder_bounds_by_whole_parts(text, is_within):
    """A name that begins alike is another one."""
    assert parse_object(text).within(parse_folder("s3://lake/in/")) is is_within


@given(st.lists(PARTS, max_size=5))
def test_no_spelling_leaves_a_folder(parts):
    """An address that is accepted within a folder stays there however a server resolves it."""
    text = "s3://lake/in/" + "/".join(parts)
    try:
        address = parse_object(text)
    except AddressError:
        return
    resolved = []
    for segment in unquote(unquote(address.key)).replace("\\", "/").split("/"):
        if segment == "..":
            resolved.pop()
        elif segment not in {"", "."}:
            resolved.append(segment)
    assert address.within(parse_folder("s3://lake/in"))
    assert tuple(resolved) == address.segments
    assert str(address) == text
    assert unquote(quote(address.key)) == address.key
