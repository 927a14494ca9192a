"""Divides the reply to a joined call into a reply for each line, as if the line had been asked alone.

Items belong to lines by their `index`: those of the first line come first. If an index is missing, repeated or
too high, the reply belongs to no line. The counts of `usage` are shared out exactly (largest remainder), in
proportion to the inputs, and for the answers to their bytes.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from tidemill.processors.calls import reply as replies
from tidemill.processors.joined.inputs import Request
from tidemill.schemas import UNREADABLE
from tidemill.schemas.bounds import TOKENS_MAX
from tidemill.schemas.endpoints import Endpoint
from tidemill.schemas.jsonl import nesting

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_unread_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_index: Final = msgspec.json.Decoder(int)
_OUTPUT: Final = ("completion", "output", "reasoning")
COMMON_BYTES_MAX: Final = 64 << 10
"""Bytes of a reply beside its items: the reply of each line has a copy of them."""
PARTS_MAX: Final = 100_000
"""Braces and colons of the items that are decoded without counting their values by level."""
FIELDS_MAX: Final = 64
"""Fields of an item; those in their values are skipped."""
APPORTIONED: Final = {"apportioned": True}
"""The value of `tidemill` in the usage of a line."""


class MixedUpError(Exception):
    """The items of a reply do not fit the lines of its call."""


def divided(body: bytes, requests: Sequence[Request], endpoint: Endpoint) -> list[bytes]:
    """The body of the reply for each line.

    Raises:
        MixedUpError: Its items do not fit the lines, an item has too many fields, or too much is beside the items.
    """
    assert endpoint.reply.filled is not None, "joinable endpoints have a list"
    try:
        text = bytes(replies.field(msgspec.Raw(body), endpoint.reply.filled))
        if len(body) - len(text) > COMMON_BYTES_MAX:
            raise MixedUpError
        fields = _fields.decode(body)
        count = sum(each.answers for each in requests)
        items = _in_order(_decoded(text, count), count)
        usages = _usages(fields, requests, _sizes(items, requests) if endpoint.generates else None)
    except (KeyError, *UNREADABLE) as error:
        raise MixedUpError from error
    bodies, first = [], 0
    for request, usage in zip(requests, usages, strict=True):
        own = [{**item, "index": number} for number, item in enumerate(items[first : first + request.answers])]
        first += request.answers
        bodies.append(msgspec.json.encode({**fields, endpoint.reply.filled: own, **usage}))
    return bodies


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Shares of a total in proportion to weights; their sum is the total.

    Each gets its part rounded down, and those with the largest remainders get one more (Hamilton's method).
    """
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [divmod(total * weight, whole) for weight in weights]
    found = [part for part, _ in parts]
    by_remainder = sorted(range(len(parts)), key=lambda number: -parts[number][1])
    for number in by_remainder[: total - sum(found)]:
        found[number] += 1
    return found


def _decoded(text: bytes, count: int) -> list[dict[str, msgspec.Raw]]:
    """The items. They have as many fields as a reply may have, however many values are in these."""
    if text.count(b"{") + text.count(b":") <= PARTS_MAX:
        return _items.decode(text)
    if nesting.exceeds(text, nesting.LEVELS_MAX) or nesting.elements(text) != count:
        raise MixedUpError
    items = _unread_items.decode(text)
    if any(_has_many_fields(bytes(item)) for item in items):
        raise MixedUpError
    return [_fields.decode(item) for item in items]


def _has_many_fields(item: bytes) -> bool:
    return item.count(b":") > FIELDS_MAX and nesting.elements(item) > FIELDS_MAX


def _in_order(items: list[dict[str, msgspec.Raw]], count: int) -> list[dict[str, msgspec.Raw]]:
    by_index = {_index.decode(item["index"]): item for item in items}
    if len(items) != count or by_index.keys() != set(range(count)):
        raise MixedUpError
    return [by_index[index] for index in range(count)]


def _sizes(items: Sequence[Mapping[str, msgspec.Raw]], requests: Sequence[Request]) -> list[int]:
    """The bytes of the answers to each line."""
    sizes = iter([sum(len(memoryview(value)) for value in item.values()) for item in items])
    return [sum(islice(sizes, request.answers)) for request in requests]


def _usages(
    fields: Mapping[str, msgspec.Raw], requests: Sequence[Request], made: Sequence[int] | None
) -> list[dict[str, Any]]:
    """The `usage` of each line, as a field of its reply; none if the reply has none."""
    usage = msgspec.json.decode(fields["usage"]) if "usage" in fields else None
    if not isinstance(usage, dict):
        return [{} for _ in requests]
    given = [request.weight for request in requests]
    return [{"usage": {**own, "tidemill": APPORTIONED}} for own in _shared(usage, given, made or given)]


def _shared(usage: Mapping[str, Any], given: Sequence[int], made: Sequence[int]) -> list[dict[str, Any]]:
    """An object of counts for each line; each gets a copy of any value that is not a count."""
    found: list[dict[str, Any]] = [{} for _ in given]
    counts = {
        name: shares(int(value), made if name.startswith(_OUTPUT) else given)
        for name, value in usage.items()
        if _is_count(value)
    }
    _add_up(usage, counts)
    for name, value in usage.items():
        if name in counts:
            values: Sequence[Any] = counts[name]
        elif name.endswith("_details") and isinstance(value, dict):
            # In proportion to the whole, so that no part is larger than it.
            whole = counts.get(name.removesuffix("_details"))
            values = _shared(value, whole or given, whole or made)
        else:
            values = [value] * len(given)
        for own, each in zip(found, values, strict=True):
            own[name] = each
    return found


def _is_count(value: object) -> bool:
    if isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX


def _add_up(usage: Mapping[str, Any], counts: dict[str, list[int]]) -> None:
    """Make the total of each line the sum of its parts, if the call's total is the sum of its parts."""
    parts = [counts[name] for name in ("prompt_tokens", "completion_tokens") if name in counts]
    if parts and "total_tokens" in counts and usage["total_tokens"] == sum(map(sum, parts)):
        counts["total_tokens"] = [sum(own) for own in zip(*parts, strict=True)]
