"""Work for a thread that would keep the event loop from the interpreter if it went on without a pause."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_half_time(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a piece of work in a thread, and wait for as long as it took: half of the time is for everybody else.

    A parser keeps the interpreter for all of a large line. Without the pause, each step of the event loop would
    wait for a line of whoever has many of them.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    done = await asyncio.to_thread(work, *args, **kwargs)
    await asyncio.sleep(loop.time() - started)
    return done
