"""A record whose key must be fetched first keeps no other record waiting."""

from types import SimpleNamespace

import pytest

from tidemill.processors.partitions import seals
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.seals import LockedRecord
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, RequestHead, Seal
from tidemill.sealing.vault import Vault

BATCH = f"batch_{1:032x}"


def record(seal):
    """A record with one line."""
    head = RequestHead(
        batch_id=BATCH, project="p", first=0, deadline=1 << 33, url="/v1/chat/completions", seal=seal
    )
    return SimpleNamespace(headers=codec.request_headers(head), value=b"{}")


@pytest.mark.parametrize("seal", [None, Seal(key_id="k", lines=1)])
def test_opening_at_once_never_waits(seal):
    """A sealed record stays locked, until another task fetches its key."""
    opening = seals.open_record(record(seal), ClosedBatches(), Vault(None), at_once=True)
    with pytest.raises(StopIteration) as ended:
        opening.send(None)
    opened = ended.value.value
    assert isinstance(opened, LockedRecord) if seal else opened[1] == [b"{}"]


async def test_a_record_whose_key_is_destroyed_is_not_locked():
    """It cannot be read later, either."""
    opened = await seals.open_record(record(Seal(key_id="k", lines=1)), ClosedBatches(), Vault(None))
    assert isinstance(opened, DecodeError)
