"""Faults that strike at a given moment in the life of a batch (`aim.py`)."""

import random
import signal

from chaos import world as worlds
from chaos.aim import MOMENTS
from chaos.world import World
from support.waiting import wait_until

ALONE_SECONDS = 5.0
"""Longer than a session of 6 s."""
TAKEN_SECONDS_MAX = 24.0
"""The supervisor ends a process without a heartbeat for 30 s, and with it the zombie."""
VICTIMS = tuple(MOMENTS)


def power_cut(world: World, chance: random.Random, victim: str) -> None:
    """Kill all processes while a batch is at a moment, and start them again."""
    del chance

    def strike(batch_id: str) -> None:
        del batch_id
        world.hard[f"power cut at {victim}"] += 1
        world.crash()

    world.aim.strike_at(victim, strike)


def zombie(world: World, chance: random.Random, victim: str) -> None:
    """Freeze the only results process at a moment, resume it once another process has the batch, and end it."""
    del chance
    world.stop_extras()
    # A process that has not started to work writes nothing, and would be no zombie.
    wait_until(lambda: world.stack.is_ready("results"), "results to be ready")

    def strike(batch_id: str) -> None:
        frozen = world.wait_for("results")
        worlds.send(frozen, signal.SIGSTOP)
        world.hard[f"zombie at {victim}"] += 1
        try:
            world.start_extra("results")
            # The frozen process owns the batch until its session ends; then another process moves it on.
            worlds.sleep(ALONE_SECONDS)
            final = world.aim.final(batch_id)
            wait_until(
                lambda: world.aim.ended(batch_id) or world.aim.final(batch_id) > final,
                f"{batch_id} to go on by another process",
                seconds_max=TAKEN_SECONDS_MAX,
            )
            assert not worlds.gone(frozen), "the zombie was ended before it could go on"
        finally:
            worlds.send(frozen, signal.SIGCONT)
        wait_until(lambda: worlds.gone(frozen), "end of the zombie")
        world.stop_extras()

    world.aim.strike_at(victim, strike)
