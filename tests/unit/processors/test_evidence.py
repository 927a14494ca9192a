"""Whose fault a failure is, and what bad lines cost the others: the dispatcher in virtual time.

`SEEDS=1000 pytest tests/unit/processors/test_evidence.py` runs as many cases of each kind.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
from support.bad_lines import (
    FACTOR,
    FULL,
    HOUR,
    TIMEOUT_SECONDS,
    Outcome,
    Place,
    Server,
    World,
    alone,
    is_answered,
    lines,
    name,
    refusal,
    words,
)
from support.simtime import SimulatedLoop, run

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.scheduling.failed_lines import FailedGroup

SEEDS = range(int(os.environ.get("SEEDS", "3")))
SLACK_SECONDS = 10.0
AT_ONCE = [refusal(status) for status in (400, 413, 422)]
REFUSALS = [refusal(status) for status in (401, 402, 403, 404, 410)]
SUSPECTS: list[Outcome] = [
    *(refusal(status) for status in (408, 409, 424, 429, 500, 502, 503, 504)),
    FailureKind.TIMEOUT,
    FailureKind.READ,
    Answer(200, b""),
    Answer(200, b"<html>"),
]


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("outcome", [*AT_ONCE, *REFUSALS, *SUSPECTS], ids=name)
def test_a_line_that_is_refused_for_good_ends_and_costs_the_others_nothing(outcome: Outcome, servers: int) -> None:
    """One line in fifty, and a second server that is broken for everybody: right end, right words, right time."""
    bad = lines("b", random.Random(name(outcome)).sample(range(1000), 20))
    good = lines("b", range(1000)) - bad
    least = alone((980,))

    async def main(loop: SimulatedLoop) -> None:
        first = Server(lambda place, _: outcome if place in bad else None)
        second = Server(lambda *_: refusal(503))
        world = World(loop, [first, second][:servers])
        world.publish("b", 1000)
        seconds = await world.run(HOUR, world.has_ended(good))
        ended = seconds + await world.run(HOUR, world.has_ended(bad))
        assert all(is_answered(world, place) for place in good)
        assert seconds <= FACTOR * least + 0.5
        assert all(words(outcome) in world.ends[place] for place in bad)
        assert len(second.calls) < 60, "a server that is broken for everybody is left alone"
        tries = sum(first.calls[place] for place in bad) / len(bad)
        if outcome in AT_ONCE:
            assert (ended, tries) == (seconds, 1) or ended <= seconds + 1
        elif outcome in REFUSALS:
            assert ended <= seconds + SLACK_SECONDS
            assert 2 <= tries <= 3
        else:
            assert 60 <= ended <= (20 * 20 * TIMEOUT_SECONDS / 8 if outcome is FailureKind.TIMEOUT else 130)
            assert 10 <= tries <= 12
        assert world.stage._failures.groups() == []
        await world.stage.close()

    run(main)


@pytest.mark.parametrize("outcome", [*REFUSALS, *SUSPECTS, FailureKind.CONNECT], ids=name)
def test_no_line_fails_while_its_server_answers_nobody(outcome: Outcome) -> None:
    """At the start, in the middle or at the end of a batch: all are answered once the server works again."""

    async def main(loop: SimulatedLoop, begin: float, size: int, seed: int) -> None:
        begin += loop.time()
        end = begin + 1200
        server = Server(lambda _, now: outcome if begin <= now < end else None)
        world = World(loop, [server], seed=seed)
        world.publish("b", size)
        places = lines("b", range(size))
        await world.run(HOUR, world.has_ended(places))
        assert all(is_answered(world, place) for place in places)
        assert server.calls.total() <= 12 * size + 300
        await world.stage.close()

    for seed in SEEDS:
        begin = random.Random(f"{seed} {name(outcome)}").choice([0.0, 0.2, 0.4, 0.5, 0.6])
        size = 1 if seed == 1 else 300
        run(lambda loop, begin=begin, size=size, seed=seed: main(loop, begin, size, seed))  # type: ignore[misc]


class Layout(NamedTuple):
    """Where the bad lines are; `size` is the number of lines of each batch."""

    batches: int
    size: int
    seats: int
    places: set[Place]
    bad: set[Place]


def _layout(share: float, where: str, seed: int) -> Layout:
    batches, seats = 10 if seed % 2 else 1, (4, 64)[seed // 4 % 2]
    size = 1000 // batches
    names = [f"b{number}" for number in range(batches)]
    places = [(name, number) for name in names for number in range(size)]
    part = int(share * size)
    bad = {
        "head": [(name, number) for name in names for number in range(part)],
        "tail": [(name, number) for name in names for number in range(size - part, size)],
        "scattered": random.Random(seed).sample(places, int(share * 1000)),
        "together": places[: int(share * 1000)],
    }[where]
    return Layout(batches, size, seats, set(places), set(bad))


@pytest.mark.parametrize("where", ["head", "tail", "scattered", "together"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2, 0.5])
def test_bad_lines_starve_no_good_ones(share: float, where: str) -> None:
    """Wherever they are, in one batch or in several, and with a restart that makes all forgotten."""

    async def main(loop: SimulatedLoop, seed: int, layout: Layout, least: float) -> None:
        batches, size, seats, places, bad = layout
        good = places - bad
        outcome = (refusal(500), Answer(200, b"<html>"))[seed // 8 % 2]
        server = Server(lambda place, _: outcome if place in bad else None, seats=seats)
        world = World(loop, [server], seed=seed, prefix=seed % 16 >= 8)
        for number in range(batches):
            world.publish(f"b{number}", size)
        seconds = 0.0
        if seed // 2 % 2:
            seconds = await world.run(least * random.Random(seed).random())
            await world.restart()
        seconds += await world.run(FACTOR * least + SLACK_SECONDS - seconds, world.has_ended(good))
        missing = [place for place in good if place not in world.ends]
        assert not missing, f"seed {seed}: {len(missing)} good lines starve, {seconds} s of {least} s"
        assert all(is_answered(world, place) for place in good)
        await world.run(HOUR, world.has_ended(bad))
        assert all(place in world.ends and not is_answered(world, place) for place in bad)
        assert server.calls.total() <= len(good) + 16 * len(bad) + 100
        await world.stage.close()

    for seed in SEEDS:
        # Few seeds are to meet all layouts between the cases.
        number = 5 * seed + int(9 * share) + len(where)
        layout = _layout(share, where, number)
        shares = Counter(name for name, _ in layout.places - layout.bad)
        least = alone(tuple(shares.values()), layout.seats)
        run(lambda loop, number=number, layout=layout, least=least: main(loop, number, layout, least))  # type: ignore[misc]


@pytest.mark.parametrize("seats", [8, 64])
@pytest.mark.parametrize("outcome", SUSPECTS, ids=name)
def test_a_fresh_batch_takes_no_longer_beside_lines_that_are_held(outcome: Outcome, seats: int) -> None:
    """One line in twenty of the batch before fails for good, and is held or tried again meanwhile."""
    bad = lines("b", range(0, 1000, 20))
    least = alone((400,), seats)

    async def main(loop: SimulatedLoop) -> None:
        slow = Server(lambda place, _: outcome if place in bad else None, seats=seats)
        world = World(loop, [slow], max_in_flight=seats)
        world.publish("b", 1000)
        good = lines("b", range(1000)) - bad
        await world.run(HOUR, world.has_ended(good))
        # Until then each bad line is as good as any.
        await world.run(HOUR, lambda: all(slow.calls[place] > 2 for place in bad))
        for number in range(5):
            await world.run(7)
            world.publish(f"fresh{number}", 400)
            seconds = await world.run(HOUR, world.has_ended(lines(f"fresh{number}", range(400))))
            assert seconds <= FACTOR * least + 0.5
        assert world.fleet.backends[0].server.limit.sure >= 0.9 * seats, "no limit is cut for a line"
        await world.stage.close()

    run(main)


@pytest.mark.parametrize("bad", [range(0, 4000, 20), range(300)], ids=["scattered", "in a row"])
def test_a_fresh_batch_comes_in_behind_lines_that_are_held(bad: range) -> None:
    """The partition holds 400 lines: neither those that failed nor the others of their records fill it up."""
    least = alone((4400 - len(bad),))

    async def main(loop: SimulatedLoop) -> None:
        held = lines("b", bad)
        world = World(loop, [Server(lambda place, _: refusal(500) if place in held else None)], lines_max=400)
        world.publish("b", 4000)
        world.publish("fresh", 400)
        good = (lines("b", range(4000)) - held) | lines("fresh", range(400))
        seconds = await world.run(HOUR, world.has_ended(good))
        assert seconds <= FACTOR * least + 0.5
        assert len(world.ends) == len(good), "the bad ones wait for their next tries"
        await world.stage.close()

    run(main)


def test_retries_take_a_small_share_of_the_seats_while_others_wait() -> None:
    """Lines that are never answered in time, and one seat for all."""
    bad = lines("b", range(3))

    async def main(loop: SimulatedLoop) -> None:
        server = Server(lambda place, _: FailureKind.TIMEOUT if place in bad else None, seats=1, seconds=1.0)
        world = World(loop, [server], max_in_flight=1)
        world.publish("b", 2000)
        await world.run(1000)
        assert len(world.ends) >= 1000 / FACTOR - 3 * TIMEOUT_SECONDS
        await world.stage.close()

    run(main)


def test_a_full_server_fails_no_line() -> None:
    """It refuses most calls for ten minutes since others use it: that is not the lines' fault."""

    async def main(loop: SimulatedLoop) -> None:
        chance = random.Random(1)
        server = Server(lambda _, now: FULL if now < 600 and chance.random() < 0.8 else None)
        world = World(loop, [server])
        places = lines("b", range(500))
        world.publish("b", 500)
        await world.run(HOUR, world.has_ended(places))
        assert all(is_answered(world, place) for place in places)
        await world.stage.close()

    run(main)


def test_what_waits_says_why() -> None:
    """By batch and reason: since when, how many lines, and the message."""
    rules: dict[str, Callable[[int], Outcome | None]] = {
        "a": lambda number: refusal(500) if number < 3 else None,
        "b": lambda number: FailureKind.READ if number == 0 else None,
    }

    async def main(loop: SimulatedLoop) -> None:
        def rule(place: Place, _: float) -> Outcome | None:
            return rules.get(place[0], lambda _: None)(place[1])

        world = World(loop, [Server(rule)])
        since = loop.now()
        for batch in rules:
            world.publish(batch, 20)
        await world.run(10)
        waiting = sorted(world.stage._failures.groups())
        message = "this is 500"
        lost = "The connection to the backend broke off before the answer was complete."
        assert [row._replace(since=0) for row in waiting] == [
            FailedGroup("a", "backend_error", "http://0", 500, message, 3, 0),
            FailedGroup("b", "backend_connection_lost", "http://0", None, lost, 1, 0),
        ]
        assert all(since <= row.since < since + 5 for row in waiting)
        rules["b"] = lambda _: None
        await world.run(30)
        assert [row.batch_id for row in world.stage._failures.groups()] == ["a"]
        world.stage.drop("a")
        assert world.stage._failures.groups() == []
        await world.stage.close()

    run(main)


def test_a_fault_of_ours_holds_no_line_for_good() -> None:
    """The last line of all meets it again and again, and is answered once it is over."""

    async def main(loop: SimulatedLoop) -> None:
        def rule(place: Place, _: float) -> Outcome | None:
            if server.calls[place] <= 3:
                raise ValueError("a header cannot be written")
            return None

        server = Server(rule)
        world = World(loop, [server], is_connected=False)
        world.publish("b", 1)
        assert await world.run(HOUR, world.has_ended(lines("b", range(1)))) < 60
        assert is_answered(world, ("b", 0))
        await world.stage.close()

    run(main)
