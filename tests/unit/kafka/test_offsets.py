"""Committed offsets, without a broker."""

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupLoadInProgressError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetFetchResponse_v3

from tidemill.kafka.offsets import Offsets

PLACE = TopicPartition("t", 0)


class Client:
    """A client whose broker gives this answer."""

    def __init__(self, answer: OffsetFetchResponse_v3) -> None:
        self._answer = answer

    async def coordinator_lookup(self, *_: object) -> int:
        return 1

    async def send(self, *_: object) -> OffsetFetchResponse_v3:
        return self._answer


async def committed(answer: OffsetFetchResponse_v3) -> dict[TopicPartition, int]:
    """What the group has committed, by the broker's answer."""
    return await Offsets("127.0.0.1:9")._committed(Client(answer), "g", [PLACE])


@pytest.mark.parametrize("error", [NotCoordinatorForGroupError, GroupLoadInProgressError])
async def test_an_error_of_the_coordinator_is_no_lack_of_offsets(error):
    """It has no partitions; a process that took it for an answer would read all records again."""
    with pytest.raises(error):
        await committed(OffsetFetchResponse_v3(0, [], error.errno))


async def test_offsets_that_are_committed_are_found():
    """A partition without one has -1."""
    assert await committed(OffsetFetchResponse_v3(0, [("t", [(0, 7, "", 0)])], 0)) == {PLACE: 7}
    assert await committed(OffsetFetchResponse_v3(0, [("t", [(0, -1, "", 0)])], 0)) == {}
