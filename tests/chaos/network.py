"""Faults of the network between processes, brokers and the store; after each one batches must make progress."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chaos import world as worlds
from chaos.cluster import PLACES, STAGES, STORE
from chaos.world import World
from support.cuts import BACK, OUT

BROKERS = ("broker-1", "broker-2", "broker-3")
DIRECTIONS = {"out": frozenset({OUT}), "back": frozenset({BACK}), "both": frozenset({OUT, BACK})}
SECONDS = (2.0, 15.0)
"""How long a fault lasts: less than a session of 6 s, or more."""
SLOW_SECONDS = (0.05, 0.5)
"""Delay of each 64 KiB."""
TRUNCATIONS = 6
TRUNCATE_SECONDS = 1.0
ONE_CONNECTION_TRIES = 4
"""Connections to cut, one after the other: many of a process's connections are idle."""

Fault = Callable[[World, random.Random, str], None]


def cut(world: World, chance: random.Random, victim: str) -> None:
    """Cut one or both directions between a process and a broker, all brokers, the store, or all of them."""
    stage, _, direction = victim.partition(":")
    direction = direction or chance.choice(list(DIRECTIONS))
    place, servers = chance.choice(world.places(stage)), _servers(chance)
    with _faulty(world, f"cut:{stage}:{direction}", [place]):
        for server in servers:
            world.cluster.network.set(place, server, cuts=DIRECTIONS[direction])
        worlds.sleep(chance.uniform(*SECONDS))


def cut_broker(world: World, chance: random.Random, victim: str) -> None:
    """Cut one broker off from all processes, but not from the other brokers."""
    with _faulty(world, "cut-broker", PLACES):
        world.cluster.network.set(server=victim, cuts=DIRECTIONS["both"])
        worlds.sleep(chance.uniform(*SECONDS))


def cut_store(world: World, chance: random.Random, victim: str) -> None:
    """Cut the store off from all processes, in one direction or both."""
    with _faulty(world, f"cut-store:{victim}", PLACES):
        world.cluster.network.set(server=STORE, cuts=DIRECTIONS[victim])
        worlds.sleep(chance.uniform(*SECONDS))


def cut_connection(world: World, chance: random.Random, victim: str) -> None:
    """Stall single connections of a process, while its other connections go on."""
    place = chance.choice(world.places(victim))
    network = world.cluster.network
    with _faulty(world, "cut-connection", [place]):
        for _ in range(ONE_CONNECTION_TRIES):
            network.call(chance.choice(network.between(place)).cut_one(chance))
            worlds.sleep(chance.uniform(*SECONDS) / ONE_CONNECTION_TRIES)


def slow(world: World, chance: random.Random, victim: str) -> None:
    """Delay all traffic between a process and the brokers, the store, or both."""
    place, servers = chance.choice(world.places(victim)), _servers(chance)
    with _faulty(world, f"slow:{victim}", [place]):
        for server in servers:
            world.cluster.network.set(place, server, seconds=chance.uniform(*SLOW_SECONDS))
        worlds.sleep(chance.uniform(*SECONDS))


def truncate(world: World, chance: random.Random, victim: str) -> None:
    """Break connections of a process in the middle of a message, again and again."""
    place = chance.choice(world.places(victim))
    with _faulty(world, f"truncate:{victim}", [place]):
        for _ in range(TRUNCATIONS):
            server = chance.choice((*BROKERS, STORE))
            world.cluster.network.set(place, server, truncated=chance.choice((OUT, BACK)))
            worlds.sleep(TRUNCATE_SECONDS)


def half_open(world: World, chance: random.Random, victim: str) -> None:
    """Let the servers lose the connections of a process, which does not notice."""
    place, servers = chance.choice(world.places(victim)), _servers(chance)
    with _faulty(world, f"half-open:{victim}", [place]):
        for server in servers:
            world.cluster.network.set(place, server, half_open=True)
        worlds.sleep(chance.uniform(*SECONDS))


FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "cut": (cut, tuple(f"{stage}:{direction}" for stage in STAGES for direction in DIRECTIONS)),
    "cut-broker": (cut_broker, BROKERS),
    "cut-store": (cut_store, tuple(DIRECTIONS)),
    "cut-connection": (cut_connection, STAGES),
    "slow": (slow, STAGES),
    "truncate": (truncate, STAGES),
    "half-open": (half_open, STAGES),
}
"""By name, each with its victims."""


@contextmanager
def _faulty(world: World, name: str, places: list[str] | tuple[str, ...]) -> Iterator[None]:
    """Allow processors at these places to repeat their calls in flight; heal the network at the end."""
    world.soft[name] += 1
    if touched := [place for place in world.places("processors") if place in places]:
        world.note_in_flight(len(touched))
    try:
        yield
    finally:
        world.cluster.network.heal()
    world.recover(name)


def _servers(chance: random.Random) -> tuple[str, ...]:
    return chance.choice(((*BROKERS, STORE), BROKERS, *((broker,) for broker in BROKERS), (STORE,)))
