"""Bytes of replies and lines are bounded, and nothing waits without end."""

import asyncio
import random

import pytest
from support.simtime import SimulatedLoop

from tidemill.processors.memory_budget import BYTES_A_SECOND_MIN, LOOK_SECONDS, LargeLines, LargeReplies, Share


def run(work):
    """Run a coroutine to its end, without a second passing."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


class Reply:
    """A server that sends a reply in steps, as long as it is read from."""

    def __init__(self, replies: LargeReplies, size: int, step: int, seconds: float) -> None:
        self.size, self.step, self.seconds = size, step, seconds
        self.share: Share = replies.share(self._resume, self._stop)
        self.end = asyncio.get_running_loop().create_future()
        self._reading = asyncio.Event()
        self._reading.set()
        self._sent = 0

    async def run(self, hold_seconds: float) -> bool:
        """Whether it became whole; then its bytes are held for some time."""
        while self._sent < self.size and not self.end.done():
            await asyncio.sleep(self.seconds)
            await asyncio.wait(
                [self.end, reading := asyncio.ensure_future(self._reading.wait())], return_when="FIRST_COMPLETED"
            )
            reading.cancel()
            if self.end.done():
                return False
            step = min(self.step, self.size - self._sent)
            self._sent += step
            if not self.share.grow(step):
                self._reading.clear()
        if self.end.done():
            return False
        self.share.finish()
        await asyncio.sleep(hold_seconds)
        self.share.close()
        return True

    def _resume(self) -> None:
        self._reading.set()

    def _stop(self) -> None:
        self.end.set_result(None)
        self.share.close()


@pytest.mark.parametrize("seed", range(20))
def test_all_replies_become_whole_within_the_budget(seed):
    """However many and large they are, and however long their results are on their way."""
    chance = random.Random(seed)

    async def work():
        replies, most = LargeReplies(100), 0

        async def watch():
            nonlocal most
            while True:
                most = max(most, replies.used)
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        made = [Reply(replies, chance.randint(1, 80), 5, chance.random() * 0.1) for _ in range(40)]
        ends = await asyncio.gather(*(reply.run(chance.random() * 3) for reply in made))
        watching.cancel()
        return all(ends), most, replies.used

    is_all, most, left = run(work())
    assert is_all
    assert left == 0
    # A step of each that was read from when the budget was spent, and what the oldest had left.
    assert most <= 100 + 80 + 40 * 5


def test_one_that_trickles_while_others_wait_is_given_up():
    """It would hold them up for as long as a call may take; alone it may take its time."""

    async def work():
        replies = LargeReplies(100)
        rate = BYTES_A_SECOND_MIN * LOOK_SECONDS
        slow = Reply(replies, 200, 1, LOOK_SECONDS / 2)
        alone = await asyncio.wait_for(Reply(LargeReplies(100), 5, 1, 3 * LOOK_SECONDS).run(0), 1_000)
        others = [Reply(replies, 150, 50, 0.1) for _ in range(3)]
        assert rate > 200
        ends = await asyncio.gather(slow.run(0), *(reply.run(0) for reply in others))
        return alone, ends, replies.used

    assert run(work()) == (True, [False, True, True, True], 0)


def test_whole_replies_are_waited_for():
    """Where results are not taken off, nothing more is read: the oldest may go on only if that makes room."""

    async def work():
        replies = LargeReplies(100)
        whole = replies.share(lambda: None, lambda: None)
        assert whole.grow(100)
        whole.finish()
        told = []
        other = replies.share(lambda: told.append("go"), lambda: None)
        assert not other.grow(1)
        assert not told
        whole.close()
        whole.close()
        return told, replies.used

    assert run(work()) == (["go"], 1)


@pytest.mark.parametrize("seed", range(20))
def test_lines_have_their_room_in_order(seed):
    """Never too many bytes, none lost whatever is cancelled, and one larger than all there is goes alone."""
    chance = random.Random(seed)

    async def work():
        lines, used, done = LargeLines(100), 0, 0

        async def call(size):
            nonlocal used, done
            await asyncio.sleep(chance.random())
            async with lines.room(size):
                used += min(size, 100)
                assert used <= 100
                try:
                    await asyncio.sleep(chance.random())
                finally:
                    used -= min(size, 100)
            done += 1

        tasks = [asyncio.create_task(call(chance.choice([1, 40, 100, 300]))) for _ in range(50)]
        for task in tasks[::4]:
            asyncio.get_running_loop().call_later(chance.random() * 5, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(
            isinstance(error, AssertionError) for error in (t.cancelled() or t.exception() for t in tasks)
        )
        async with lines.room(100):
            return done

    assert run(work()) >= 50 - 13
