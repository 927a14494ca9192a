"""Runs work in a thread without starving the event loop of the interpreter lock."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_half_time(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work in a thread, then wait for as long as it took, so that other work gets half of the time.

    A parser holds the interpreter lock for a whole large line. Without the pause, each step of the event loop
    would wait for one line of a client that sends many.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    done = await asyncio.to_thread(work, *args, **kwargs)
    await asyncio.sleep(loop.time() - started)
    return done
