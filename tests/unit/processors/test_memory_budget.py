"""Bytes of replies and lines are bounded, and nothing waits without end."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simtime import SimulatedLoop

from tidemill.processors.memory_budget import (
    BYTES_A_SECOND_MIN,
    CHECK_SECONDS,
    LargeReplies,
    LineBudget,
    ReplyBytes,
)


def run(work):
    """Run a coroutine to its end, without a second passing."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


class Reply:
    """A server that sends a reply in steps, as long as it is read from."""

    def __init__(self, replies: LargeReplies, size: int, step: int, seconds: float) -> None:
        self.size, self.step, self.seconds = size, step, seconds
        self.share: ReplyBytes = replies.share(self._resume, self._stop)
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
def test_all_replies_complete_within_the_budget(seed):
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


def test_a_slow_reply_is_given_up_while_others_wait():
    """It would hold them up for as long as a call may take; alone it may take its time."""

    async def work():
        replies = LargeReplies(100)
        rate = BYTES_A_SECOND_MIN * CHECK_SECONDS
        slow = Reply(replies, 200, 1, CHECK_SECONDS / 2)
        alone = await asyncio.wait_for(Reply(LargeReplies(100), 5, 1, 3 * CHECK_SECONDS).run(0), 1_000)
        others = [Reply(replies, 150, 50, 0.1) for _ in range(3)]
        assert rate > 200
        ends = await asyncio.gather(slow.run(0), *(reply.run(0) for reply in others))
        return alone, ends, replies.used

    assert run(work()) == (True, [False, True, True, True], 0)


def test_reading_pauses_until_complete_replies_are_freed():
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


@given(st.lists(st.tuples(st.sampled_from(["ask", "release", "withdraw"]), st.integers(1, 300)), max_size=60))
def test_large_lines_get_memory_in_the_order_of_their_requests(steps):
    """Never too much of it, a line larger than all of it alone; the first waits only while there is no room."""
    budget, requests = LineBudget(100), []

    def used():
        return sum(request.size for request in requests if request.is_granted)

    for step, number in steps:
        if step == "ask":
            requests.append(budget.ask(number, lambda: None))
        elif requests:
            request = requests.pop(number % len(requests))
            budget.withdraw(request)
        assert used() <= 100
        waiting = [request.is_granted for request in requests]
        assert waiting == sorted(waiting, reverse=True), "in their order"
        first = next((request for request in requests if not request.is_granted), None)
        assert first is None or used() + first.size > 100
    for request in requests[::-1]:
        budget.withdraw(request)
    assert budget.take(1000)
