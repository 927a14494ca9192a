"""A record whose key must be fetched first keeps no other record waiting."""

import asyncio
from types import SimpleNamespace

import pytest

from tidemill.processors.partitions import seals
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.seals import LockedRecord, SealedOutbox
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, RequestHead, Seal
from tidemill.sealing.vault import Vault

BATCH = f"batch_{1:032x}"


def record(seal, *, url="/v1/chat/completions"):
    """A record with one line."""
    head = RequestHead(batch_id=BATCH, project="p", first=0, deadline=1 << 33, url=url, seal=seal)
    return SimpleNamespace(headers=codec.request_headers(head), value=b"{}")


@pytest.mark.parametrize("seal", [None, Seal(key_id="k", lines=1)])
def test_opening_at_once_never_waits(seal):
    """A sealed record stays locked, until another task fetches its key."""
    opening = seals.open_record(record(seal), ClosedBatches(), Vault(None), at_once=True)
    with pytest.raises(StopIteration) as ended:
        opening.send(None)
    opened = ended.value.value
    assert isinstance(opened, LockedRecord) if seal else opened[1] == [b"{}"]


@pytest.mark.parametrize(("url", "runs"), [("/v1/mine", True), ("/v1/mine/../admin", False), ("/admin", False)])
async def test_lines_of_an_endpoint_that_the_settings_lack_run(url, runs):
    """They were accepted while the settings had it."""
    opened = await seals.open_record(record(None, url=url), ClosedBatches(), Vault(None))
    assert isinstance(opened, tuple) == runs


async def test_a_record_whose_key_is_destroyed_is_not_locked():
    """It cannot be read later, either."""
    opened = await seals.open_record(record(Seal(key_id="k", lines=1)), ClosedBatches(), Vault(None))
    assert isinstance(opened, DecodeError)


async def test_results_of_a_batch_that_is_over_wait_for_no_destroyed_key(monkeypatch):
    """Else their lines would never end; those of a cancelled batch wait, as long as its results count."""
    monkeypatch.setattr(seals, "KEY_SECONDS", 0.0)
    vault, closed = Vault(None), ClosedBatches()
    for value in (b"{}", None):
        vault.apply(f"{BATCH}/k", value)
    closed.close(BATCH, 1.0)
    # It has no outbox: it sends nothing.
    sending = asyncio.create_task(SealedOutbox(None, vault, closed).send(BATCH, b"{}\n", []))
    for is_over in (False, True):
        for _ in range(9):
            await asyncio.sleep(0)
        assert sending.done() is is_over
        closed.close(BATCH)
    await sending
