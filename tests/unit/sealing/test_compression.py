"""Encrypted lines are not compressed: that takes CPU and shrinks nothing."""

import pytest

from tidemill.ingest.kafka import RequestProducer
from tidemill.kafka.producer import Log
from tidemill.processors.kafka import KafkaOutbox
from tidemill.sealing.vault import Vault

KAFKA = "127.0.0.1:9"


def requests(kafka, **how):
    """The producer of requests."""
    return RequestProducer(kafka, Log(kafka), partitions=4, ensure_topics=print, vault=Vault(None), **how)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("make", [KafkaOutbox, requests])
async def test_lines_are_compressed_unless_they_are_encrypted(make, encrypted):
    """Requests and results alike."""
    client = make(KAFKA, encrypted=encrypted)._producer._new()
    batches = client._message_accumulator
    assert (batches._compression_type == 0) is encrypted
    await client.stop()
