"""Decodes a server's answer to `GET /models`."""

from typing import Final

import msgspec

from tidemill.schemas import decoded


class _Served(msgspec.Struct, frozen=True):
    id: str


class _Listing(msgspec.Struct, frozen=True):
    data: list[_Served]


_listings: Final = msgspec.json.Decoder(_Listing)


def names(body: bytes) -> list[str] | None:
    """The ids of the models; None if the body is not a list of models."""
    listing = decoded(_listings, body)
    return None if listing is None else [served.id for served in listing.data]
