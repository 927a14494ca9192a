"""Decodes a server's answer to `GET /models`."""

from typing import Final

import msgspec

from tidemill.schemas import UNREADABLE


class _Served(msgspec.Struct, frozen=True):
    id: str


class _Listing(msgspec.Struct, frozen=True):
    data: list[_Served]


_listings: Final = msgspec.json.Decoder(_Listing)


def names(body: bytes) -> list[str] | None:
    """The ids of the models; None if the body is not a list of models."""
    try:
        return [served.id for served in _listings.decode(body).data]
    except UNREADABLE:
        return None
