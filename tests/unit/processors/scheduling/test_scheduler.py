"""Which line is next."""

import itertools
from collections import Counter, defaultdict
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.scheduling.scheduler import Scheduler

Item = tuple[str, str, int]
"""Project, batch, number."""


def add(order: Scheduler[Item], project: str, batch: str, numbers: range, deadline: float = 0.0) -> None:
    order.add([(project, batch, n) for n in numbers], project=project, batch_id=batch, deadline=deadline)


batches = st.dictionaries(
    st.tuples(st.sampled_from("pqr"), st.sampled_from("abcd")),
    st.tuples(st.integers(0, 30), st.integers(0, 3)),
    max_size=8,
)


@given(batches, st.integers(1, 40))
def test_every_line_is_taken_once_and_in_order(
    sizes: dict[tuple[str, str], tuple[int, int]], turn_lines: int
) -> None:
    """None is lost, and a batch keeps its order."""
    order: Scheduler[Item] = Scheduler()
    for (project, name), (lines, deadline) in sizes.items():
        add(order, project, project + name, range(lines), deadline)
    taken = defaultdict(list)
    while (item := order.take(turn_lines=turn_lines)) is not None:
        taken[item[1]].append(item[2])
    assert taken == {p + b: list(range(lines)) for (p, b), (lines, _) in sizes.items() if lines}
    assert len(order) == 0


@given(
    st.lists(st.tuples(st.sampled_from(["add", "take", "drop", "back", "clear"]), st.integers(0, 5)), max_size=80)
)
def test_no_sequence_of_calls_loses_count(steps: list[tuple[str, int]]) -> None:
    """Lines and batches are added, dropped and added again; each line comes out once."""
    order: Scheduler[int] = Scheduler()
    waiting: set[int] = set()
    taken: list[int] = []
    for number, (step, which) in enumerate(steps):
        where = {"project": f"p{which % 2}", "batch_id": f"b{which}", "deadline": float(which)}
        if step == "add":
            order.add([number], **where)
            waiting.add(number)
        elif step == "back" and taken:
            order.add([taken[-1]], **where)
            waiting.add(taken.pop())
        elif step == "take":
            line = order.take(turn_lines=1 + which, chance=which / 6 if number % 2 else None)
            assert (line is None) == (not waiting)
            if line is not None:
                waiting.remove(line)
                taken.append(line)
        elif step in {"drop", "clear"}:
            lines = order.drop(f"b{which}") if step == "drop" else order.clear()
            assert set(lines) <= waiting
            waiting -= set(lines)
        assert len(order) == len(waiting)
    while (line := order.take()) is not None:
        waiting.remove(line)
    assert not waiting
    assert len(order._batches) <= 6


@given(st.integers(2, 5), st.integers(1, 50), st.integers(1, 7))
def test_projects_share_equally(projects: int, rounds: int, turn_lines: int) -> None:
    """After any number of calls no project is more than one turn ahead, however many lines and batches it has."""
    order: Scheduler[Item] = Scheduler()
    for n in range(projects):
        for batch in range(n + 1):
            add(order, f"p{n}", f"p{n}b{batch}", range(rounds))
    counts = Counter(order.take(turn_lines=turn_lines)[0] for _ in range(rounds))  # type: ignore[index]
    assert max(counts.values()) - min(counts[f"p{n}"] for n in range(projects)) <= turn_lines


def test_a_small_batch_passes_a_large_one() -> None:
    """Ten lines behind fifty thousand with an earlier deadline are done within forty calls."""
    order: Scheduler[Item] = Scheduler()
    add(order, "p", "big", range(50_000), deadline=1)
    add(order, "p", "small", range(10), deadline=2)
    first = Counter(order.take()[1] for _ in range(40))  # type: ignore[index]
    assert first["small"] == 10


def test_a_turn_is_a_run_of_lines_of_one_batch() -> None:
    """Twenty batches beside each other: their lines come in runs, and each batch has its runs."""
    order: Scheduler[Item] = Scheduler()
    for n in range(20):
        add(order, "p", f"b{n}", range(1000), deadline=n)
    taken = [order.take(turn_lines=16) for _ in range(90 * 16)]
    runs = [len(list(run)) for _, run in itertools.groupby(taken, key=lambda item: item and item[1])]
    # The urgent batch is the first of the rotation too: there its turns follow each other.
    assert all(run % 16 == 0 for run in runs)
    assert len({item[1] for item in taken if item}) == 20


def test_a_turn_ends_with_the_lines_of_its_batch() -> None:
    """Also if the allowed run has become shorter meanwhile."""
    order: Scheduler[Item] = Scheduler()
    add(order, "p", "a", range(2), deadline=1)
    add(order, "p", "b", range(50), deadline=2)
    assert [order.take(turn_lines=8)[1] for _ in range(5)] == ["a", "a", "b", "b", "b"]  # type: ignore[index]
    add(order, "p", "c", range(50), deadline=0)
    assert [order.take(turn_lines=2)[1] for _ in range(3)] == ["c", "c", "b"]  # type: ignore[index]


def test_a_new_batch_waits_for_two_turns_at_most() -> None:
    """Ten lines behind twenty large batches of their own project, which all had a turn."""
    order: Scheduler[Item] = Scheduler()
    for n in range(20):
        add(order, "p", f"b{n}", range(1000), deadline=n)
    for _ in range(90 * 16 + 3):
        order.take(turn_lines=16)
    add(order, "p", "small", range(10), deadline=99)
    assert Counter(order.take(turn_lines=16)[1] for _ in range(2 * 16 + 10))["small"] == 10  # type: ignore[index]


def test_a_flood_of_small_batches_leaves_the_others_their_turns() -> None:
    """New ones without end, all of them urgent: every fourth turn is another's."""
    order: Scheduler[Item] = Scheduler()
    for n in range(4):
        add(order, "p", f"b{n}", range(1000), deadline=99)
    turns = Counter()
    for number in range(400):
        add(order, "p", f"small{number}", range(4), deadline=1)
        turns[order.take(turn_lines=4)[1][:1]] += 1  # type: ignore[index]
    assert turns["b"] >= 90


@given(st.integers(1, 20), st.integers(1, 20))
def test_the_urgent_batch_has_half_the_calls(others: int, turn_lines: int) -> None:
    """However many batches wait beside it."""
    order: Scheduler[Item] = Scheduler()
    for n in range(others):
        add(order, "p", f"b{n}", range(100), deadline=5)
    add(order, "p", "urgent", range(100), deadline=1)
    assert Counter(order.take(turn_lines=turn_lines)[1] for _ in range(100))["urgent"] >= 50  # type: ignore[index]


@given(st.integers(0, 2**32))
def test_a_line_taken_at_random_may_be_any(seed: int) -> None:
    """A hundred bad lines before a hundred good ones hide none of these; each line is still taken once."""
    random = Random(seed)
    order: Scheduler[int] = Scheduler()
    order.add(range(200), project="p", batch_id="b", deadline=0)
    taken = [order.take(chance=random.random()) for _ in range(40)]
    assert any(line is not None and line >= 100 for line in taken)
    taken += [order.take() for _ in range(160)]
    assert sorted(line for line in taken if line is not None) == list(range(200))


def test_lines_taken_at_random_leave_the_others_their_turns() -> None:
    """Two projects, and one of two batches: each has its part of them."""
    order: Scheduler[Item] = Scheduler()
    for project, batch in (("p", "a"), ("p", "b"), ("q", "c")):
        add(order, project, batch, range(100))
    counts = Counter(order.take(turn_lines=16, chance=0.5)[1] for _ in range(80))  # type: ignore[index]
    assert counts["c"] == 40
    assert min(counts["a"], counts["b"]) >= 10


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 200), st.integers(1, 9))
def test_projects_share_by_weight(weights: list[int], rounds: int, turn_lines: int) -> None:
    """After any number of calls each project has its part, give or take one of its turns and one of each other."""
    order: Scheduler[Item] = Scheduler(TurnClocks({f"p{n}": float(weight) for n, weight in enumerate(weights)}))
    for n in range(len(weights)):
        add(order, f"p{n}", f"b{n}", range(rounds))
    counts = Counter(order.take(turn_lines=turn_lines)[0] for _ in range(rounds))  # type: ignore[index]
    for n, weight in enumerate(weights):
        assert abs(counts[f"p{n}"] - rounds * weight / sum(weights)) <= len(weights) * turn_lines


def test_no_project_saves_up_turns() -> None:
    """A project that comes late, or comes back, shares from then on; it does not catch up."""
    order: Scheduler[Item] = Scheduler()
    add(order, "early", "a", range(1000))
    for _ in range(500):
        order.take()
    add(order, "late", "b", range(100))
    counts = Counter(order.take()[0] for _ in range(20))  # type: ignore[index]
    assert counts == {"early": 10, "late": 10}
