"""When processors call a server silent, on simulated time, and what a look at all lines costs."""

from typing import Any

from support.simtime import SimulatedLoop
from support.simulated_stage import WELL, World, simulated

from tidemill import metrics
from tidemill.instruments import Buckets
from tidemill.processors.backends.call_metrics import CallMetrics
from tidemill.processors.lines import Pending
from tidemill.processors.scheduling.stalls import CHECK_SECONDS, STALL_SECONDS
from tidemill.schemas.resources.waiting import Reason


def test_a_process_that_stood_still_blames_no_server() -> None:
    """After a freeze of a minute the replies lie in its sockets."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.seconds = 1000.0
        world.publish("b", 8)
        await world.pass_(STALL_SECONDS - 2 * CHECK_SECONDS)
        loop.jump(60.0)
        stalls = world.stage.stalls
        assert not stalls.of_servers(loop.time())
        assert not stalls.check(loop.time())
        await world.pass_(STALL_SECONDS)
        assert {one.reason for one in world.waits("b")} == {Reason.SERVER_SILENT}
        await world.stage.close()

    simulated(run)


def test_calls_that_timed_out_do_not_make_a_server_look_slow() -> None:
    """It is silent as soon after an outage as before it, by its good calls."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.stage._caller._seconds_max = 600
        world.publish("a", 40)
        await world.pass_(10)
        world.upstream.reply = None
        world.publish("b", 8)
        await world.pass_(500)
        world.upstream.reply = WELL
        await world.pass_(300)
        assert not world.stage.pending
        world.upstream.reply = None
        world.publish("c", 8)
        await world.pass_(STALL_SECONDS + 2 * CHECK_SECONDS)
        assert {one.reason for one in world.waits("c")} == {Reason.SERVER_SILENT}
        await world.stage.close()

    simulated(run)


def test_a_report_says_since_when_by_the_clock() -> None:
    """Lines also wait while the process stands still."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.seconds = 10_000.0
        published_at = loop.now()
        world.publish("b", 8)
        await world.pass_(STALL_SECONDS - 2 * CHECK_SECONDS)
        loop.jump(3600.0)
        await world.pass_(STALL_SECONDS)
        (told,) = world.waits("b")
        assert abs(told.since - published_at) <= CHECK_SECONDS + 1
        await world.stage.close()

    simulated(run)


def test_a_check_asks_each_server_once_how_long_its_calls_take() -> None:
    """However many batches wait."""

    class Counting(CallMetrics):
        asked = 0

        def usual_seconds(self, part: float) -> float | None:
            Counting.asked += 1
            return super().usual_seconds(part)

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.pool.backends[0].metrics = Counting(Buckets(metrics.CALL_SECONDS))
        world.upstream.seconds = 1000.0
        for number in range(100):
            world.publish(f"b{number}", 1)
        await world.pass_(STALL_SECONDS)
        for look in (world.stage.stalls.check, world.stage.stalls.of_servers):
            Counting.asked = 0
            look(loop.time())
            assert Counting.asked == 1
        await world.stage.close()

    simulated(run)


def test_a_check_reads_each_batch_once() -> None:
    """However many of them wait for their turn."""

    class Batches(dict[str, Pending]):
        passes = 0

        def values(self) -> Any:
            self.passes += 1
            return super().values()

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.seconds = 1000.0
        batches = world.stage.stalls._batches = Batches()
        for number in range(100):
            world.publish(f"b{number}", 1)
        batches.update(world.stage.lines.batches)
        await world.pass_(STALL_SECONDS)
        batches.passes = 0
        await world.pass_(CHECK_SECONDS)
        assert batches.passes == 1
        assert Reason.QUEUED in {one.reason for one in world.waits("b9")}
        await world.stage.close()

    simulated(run)
