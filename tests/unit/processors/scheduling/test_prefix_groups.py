"""Lines with a common prefix go one after the other."""

import random
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.scheduling.prefix_groups import (
    AHEAD_LINES_MIN,
    SPAN_LINES,
    STRANDED_TAKES,
    Prefixes,
    PrefixGroups,
)
from tidemill.processors.scheduling.scheduler import Scheduler

Item = tuple[int, int | None]
"""Number and prefix."""


@dataclass(eq=False)
class Place:
    """A backend that caches a number of prefixes, each from the end of its prefill."""

    name: str = "a"
    in_flight: int = 0
    cached_max: int = 20
    cached: OrderedDict[int | None, None] = field(default_factory=OrderedDict)
    hits: int = 0

    def begin(self, key: int | None) -> None:
        """Begin a call; returns whether its prefix is cached."""
        self.in_flight += 1
        if key in self.cached:
            self.hits += 1
            self.cached.move_to_end(key)

    def keep(self, key: int | None) -> None:
        """Cache a prefix at the end of its prefill."""
        self.cached[key] = None
        self.cached.move_to_end(key)
        if len(self.cached) > self.cached_max:
            self.cached.popitem(last=False)


def prefixes(*places: Place) -> Prefixes[Item]:
    return Prefixes(lambda item: item[1], places)


def order(items: list[Item], shared: Prefixes[Item] | None, batch_id: str = "b") -> Scheduler[Item]:
    made: Scheduler[Item] = Scheduler(prefixes=shared)
    made.add(items, project="p", batch_id=batch_id, deadline=0)
    return made


def run(
    items: list[Item], places: list[Place], *, is_grouped: bool = True, calls: int = 64, down: int = 0
) -> tuple[list[Item], float]:
    """Call all of them, a tenth of a second each or up to some times that; gives their order, and the time.

    The first `down` of the places are down.
    """
    rng = random.Random(0)
    waiting = order(items, prefixes(*places) if is_grouped else None)
    ends: list[tuple[float, int, Place, Item, bool]] = []
    taken: list[Item] = []
    now = 0.0
    while True:
        while (place := min(places[down:], key=lambda place: place.in_flight)).in_flight < calls:
            if (item := waiting.take(place)) is None:
                break
            taken.append(item)
            place.begin(item[1])
            seconds = 0.1 * (1 + rng.expovariate(1))
            heappush(ends, (now + 0.05, item[0], place, item, False))
            heappush(ends, (now + seconds, item[0], place, item, True))
        if not ends:
            return taken, now
        now, _, place, item, is_over = heappop(ends)
        if is_over:
            place.in_flight -= 1
            waiting.primed(item)
        else:
            place.keep(item[1])


def mixed(lines: int, keys: int) -> list[Item]:
    rng = random.Random(1)
    return [(number, rng.randrange(keys)) for number in range(lines)]


@pytest.mark.parametrize(("places", "hits"), [(1, 0.97), (2, 0.9), (4, 0.8)])
def test_a_cache_of_twenty_serves_two_hundred_prompts(places: int, hits: float) -> None:
    """Ten thousand lines in any order; as they stand one in ten would find its prompt. The seats stay filled."""
    backends = [Place(f"http://{number}/v1") for number in range(places)]
    items = mixed(10_000, 200)
    taken, seconds = run(items, backends)
    assert sorted(taken) == items
    assert sum(backend.hits for backend in backends) >= hits * len(items)
    plain = [Place(f"http://{number}/v1") for number in range(places)]
    _, as_they_stand = run(items, plain, is_grouped=False)
    assert sum(backend.hits for backend in plain) <= 0.15 * len(items)
    assert seconds <= 1.05 * as_they_stand


def test_one_primer_fills_the_cache_for_its_group() -> None:
    """The others wait for it; otherwise each call that goes out with it would prefill the prefix, too."""
    backend = Place()
    run([(number, 7) for number in range(1000)], [backend])
    assert backend.hits == 999


def test_a_backend_that_is_down_gets_no_group() -> None:
    """The other backends share its groups."""
    backends = [Place(f"http://{number}/v1") for number in range(3)]
    items = mixed(10_000, 200)
    taken, _ = run(items, backends, down=1)
    assert sorted(taken) == items
    assert sum(backend.hits for backend in backends) >= 0.8 * len(items)


def test_a_group_goes_after_its_primer() -> None:
    """Meanwhile lines of another group fill the seats; a line in no group needs no primer."""
    backend = Place()
    waiting = order([(0, 1), (1, 2), (2, 1), (3, 1), (4, 3), (5, 2)], prefixes(backend))
    first = [waiting.take(backend) for _ in range(3)]
    assert first == [(1, 2), (0, 1), (4, 3)]
    assert waiting.take(backend) is None
    assert waiting.is_primer((0, 1))
    assert not waiting.is_primer((4, 3))
    assert waiting.primed((0, 1))
    assert not waiting.primed((0, 1))
    assert [waiting.take(backend) for _ in range(3)] == [(2, 1), (3, 1), None]
    assert waiting.primed((1, 2))
    assert waiting.take(backend) == (5, 2)
    # A group called lately needs no primer.
    waiting.add([(6, 1), (7, 1)], project="p", batch_id="b", deadline=0)
    assert [waiting.take(backend) for _ in range(3)] == [(6, 1), (7, 1), None]


def test_another_batch_goes_on_while_a_group_waits() -> None:
    """Its turns are its own."""
    backend = Place()
    waiting = order([(number, 1) for number in range(10)], prefixes(backend))
    waiting.add([(number, None) for number in range(10, 13)], project="q", batch_id="c", deadline=0)
    assert {waiting.take(backend) for _ in range(4)} == {(0, 1), (10, None), (11, None), (12, None)}
    assert waiting.take(backend) is None
    assert waiting.primed((0, 1))
    assert [waiting.take(backend) for _ in range(9)] == [(number, 1) for number in range(1, 10)]


@given(st.lists(st.integers(0, 5) | st.none(), max_size=200), st.integers(1, 20), st.integers(0, 99))
def test_fewer_lines_than_the_span_overtake_a_line(keys: list[int | None], in_flight: int, seed: int) -> None:
    """And as many primers as are ahead, whatever comes in while others go out."""
    span, rng = 16, random.Random(seed)
    backend = Place(in_flight=in_flight)
    groups: PrefixGroups[Item] = PrefixGroups(prefixes(backend), span_lines=span)
    coming = list(enumerate(keys))
    waits: set[int] = set()
    overtaken: Counter[int] = Counter()
    while coming or groups:
        if coming and (rng.random() < 0.5 or not groups):
            item = coming.pop(0)
            groups.add([item])
            waits.add(item[0])
            continue
        number, _ = item = groups.take(backend)
        waits.remove(number)
        overtaken.update(other for other in waits if other < number)
        if groups.is_primer(item):
            groups.primed(item)
    assert not waits
    assert max(overtaken.values(), default=0) < span + max(AHEAD_LINES_MIN, 2 * in_flight)


def test_an_endless_group_lets_others_pass() -> None:
    """Lines more than a span behind the first one form another group, with its own place in the order."""
    backend = Place()
    groups: PrefixGroups[Item] = PrefixGroups(prefixes(backend), span_lines=16)
    groups.add([(number, 3) for number in range(AHEAD_LINES_MIN)])
    groups.add([(100, 1), (101, 2), *((number, 1) for number in range(102, 1000))])
    for _ in range(AHEAD_LINES_MIN + 16 + 1):
        item = groups.take(backend)
        if groups.is_primer(item):
            groups.primed(item)
        if item == (101, 2):
            return
    raise AssertionError("it was overtaken by more than a span")


def test_a_group_waits_for_its_backend_within_a_span() -> None:
    """Not forever, if that backend takes no calls."""
    one, other = Place("http://0/v1"), Place("http://1/v1")
    shared = prefixes(one, other)
    ours = [key for key in range(1, 2000) if shared.owner(key) is one]
    theirs = next(key for key in range(1, 2000) if shared.owner(key) is other)
    groups: PrefixGroups[Item] = PrefixGroups(shared, span_lines=16)
    # Both have enough set aside.
    groups.add([(number, None) for number in range(2 * AHEAD_LINES_MIN)])
    groups.add([(50 + number, None) for number in range(2 * AHEAD_LINES_MIN)])
    groups.add([(100, theirs)])
    groups.add([(200 + number, key) for number, key in enumerate(ours[:40])])
    for number in range(100):
        item = groups.take(one)
        if item == (100, theirs):
            return
        groups.add([(300 + number, ours[40 + number])])
    raise AssertionError("it was passed over for longer")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "take", "pick", "primed", "drop", "clear", "places"]), st.integers(0, 5)
        ),
        max_size=120,
    ),
    st.integers(0, 3),
)
def test_no_sequence_of_calls_loses_a_line(steps: list[tuple[str, int]], backends: int) -> None:
    """Lines, backends and batches are added, dropped and added again; each line comes out once."""
    known = [Place(f"http://{number}/v1") for number in range(3)]
    places = known[:backends]
    shared = prefixes(*places)
    waiting: Scheduler[Item] = Scheduler(prefixes=shared)
    inside: dict[Item, str] = {}
    called: list[tuple[Item, str]] = []
    for number, (step, which) in enumerate(steps):
        batch = f"b{which}"
        where = {"project": f"p{which % 2}", "batch_id": batch, "deadline": 0.0}
        if step == "add":
            items = [(10 * number + n, (number + n) % 3 or None) for n in range(which + 1)]
            waiting.add(items, **where)  # type: ignore[arg-type]
            inside |= dict.fromkeys(items, batch)
        elif step in {"take", "pick"}:
            chance = which / 6 if step == "pick" else None
            if places and (item := waiting.take(places[which % len(places)], chance=chance)) is not None:
                called.append((item, inside.pop(item)))
        elif step == "primed" and called:
            waiting.primed(called.pop(which % len(called))[0])
        elif step == "places":
            places = known[which % 3 :]
            shared.follow(places)
            waiting.follow(TurnClocks())
        elif step == "drop":
            assert set(waiting.drop(batch)) == {item for item, other in inside.items() if other == batch}
            inside = {item: other for item, other in inside.items() if other != batch}
        elif step == "clear":
            assert set(waiting.clear()) == set(inside)
            inside = {}
        assert len(waiting) <= len(inside)
    for item, _ in called:
        waiting.primed(item)
    shared.follow(known)
    waiting.follow(TurnClocks())
    assert set(iter(lambda: taken(waiting, known[0]), None)) == set(inside)
    assert not waiting


def taken(waiting: Scheduler[Item], place: Place) -> Item | None:
    """The next line, whose call ends at once."""
    if (item := waiting.take(place)) is not None:
        waiting.primed(item)
    return item


def test_a_group_stays_with_its_backend() -> None:
    """All processes assign a group to the same backend, and a backend gets its own groups first."""
    places = [Place(f"http://{number}/v1") for number in range(3)]
    shared = prefixes(*places)
    assert {shared.owner(key).name for key in range(100)} == {place.name for place in places}
    other = prefixes(*reversed(places))
    assert [shared.owner(key).name for key in range(100)] == [other.owner(key).name for key in range(100)]
    waiting = order([(number, number % 100) for number in range(1000)], shared)
    at = Counter[bool]()
    for turn in range(300):
        place = places[turn % 3]
        item = waiting.take(place)
        assert item is not None
        at[shared.owner(item[1] or 0) is place] += 1
        waiting.primed(item)
    assert at[True] >= 0.9 * at.total()


def test_other_backends_take_the_lines_reserved_for_one_that_is_down() -> None:
    """It gets no calls for a while: others take the lines reserved for it."""
    places = [Place("http://0/v1"), Place("http://1/v1")]
    items = mixed(SPAN_LINES, 200)
    waiting = order(items, prefixes(*places))
    primer = waiting.take(places[0])
    assert primer is not None
    assert waiting.primed(primer)
    set_aside = {item for item in items if item[1] == primer[1]} - {primer}
    for _ in range(2 * STRANDED_TAKES):
        item = waiting.take(places[1])
        assert item is not None
        waiting.primed(item)
        set_aside.discard(item)
    assert not set_aside
