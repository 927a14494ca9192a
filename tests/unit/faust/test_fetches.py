"""How long fetches wait at the broker."""

from types import SimpleNamespace

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.protocol.fetch import FetchRequest_v4
from faust.types import TP

from tidemill.configuration.settings import Settings
from tidemill.faust.patches import BRIEF_MS, IDLE_MS
from tidemill.faust.stage_app import create_app


class Client:
    """One broker that leads every partition."""

    _loop = None
    _metadata_max_age_ms = 1000
    cluster = SimpleNamespace(leader_for_partition=lambda _: 1)


async def waits_ms(held, tmp_path, *, active=(0, 1, 2), full=(), rebalancing=False):
    """How long the broker may wait in the next fetch, while the partitions `held` have records not yet taken.

    The app reads the partitions `active`, and has no room for those of `full`.
    """
    app = create_app("flow", Settings(), kafka="127.0.0.1:9", state=tmp_path)
    partitions = [TopicPartition("requests", number) for number in range(3)]
    subscriptions = SubscriptionState()
    fetcher = Fetcher(Client(), subscriptions, fetch_max_wait_ms=1500)
    consumer = SimpleNamespace(_fetcher=fetcher, _coordinator=SimpleNamespace(is_tracked=True))
    app.consumer = SimpleNamespace(
        app=SimpleNamespace(rebalancing=rebalancing),
        _thread=SimpleNamespace(_consumer=consumer),
        _active_partitions={TP(*partitions[number]) for number in active},
        _buffered_partitions={TP(*partitions[number]) for number in full},
    )
    for _ in range(2):
        await app._joined()
    subscriptions.assign_from_user(partitions)
    assignment = subscriptions.subscription.assignment
    for tp in partitions:
        assignment.state_value(tp).seek(0)
    fetcher._records = {tp: SimpleNamespace(calculate_backoff=lambda: 0) for tp in partitions[:held]}
    [(_, request)] = fetcher._get_actions_per_node(assignment)[0]
    await fetcher.close()
    return request.build(FetchRequest_v4).max_wait_time


async def test_a_fetch_that_omits_partitions_waits_briefly(tmp_path):
    """The next fetch after it reads them."""
    assert await waits_ms(0, tmp_path) == IDLE_MS
    assert [await waits_ms(held, tmp_path) for held in (1, 2)] == [BRIEF_MS, BRIEF_MS]
    assert await waits_ms(1, tmp_path, active=(1, 2), full=(0,)) == BRIEF_MS


async def test_untaken_records_of_a_partition_that_is_not_read_shorten_no_fetch(tmp_path):
    """The client has fetched from a changelog after its recovery, and the app leaves these records."""
    assert await waits_ms(1, tmp_path, active=(1, 2)) == IDLE_MS


async def test_fetches_of_a_rebalance_wait_briefly(tmp_path):
    """What the app asks for meanwhile waits behind them, and no partition is read yet."""
    assert await waits_ms(1, tmp_path, active=(), rebalancing=True) == BRIEF_MS
