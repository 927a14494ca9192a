"""Keys of objects: segments of ids, joined by slashes; none starts with a dot, as `..` and hidden files do."""

import re

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"(?:{_SEGMENT}/){{0,7}}{_SEGMENT}\Z")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/){{0,7}}(?:{_SEGMENT})?\Z")


def checked_key(key: str) -> str:
    """The key itself.

    Raises:
        ValueError: It is not a key.
    """
    if _KEY.match(key) is None:
        raise ValueError("not a key of the store")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix itself.

    Raises:
        ValueError: It is not a prefix of keys.
    """
    if _PREFIX.match(prefix) is None:
        raise ValueError("not a prefix of keys of the store")
    return prefix
