"""The room of a listener: never more than its cap, and the one that waited longest goes first."""

import resource

from hypothesis import given
from hypothesis import strategies as st

from tidemill.runtime import connections
from tidemill.runtime.connections import WAITING_MIN, Connection, Room

CAP = 2 * WAITING_MIN


def arrivals(room, count, address="a"):
    """So many connections that try to enter, and which of them have been dropped."""
    dropped = []
    made = []
    for number in range(count):
        connection = Connection(address)
        connection.drop = lambda number=number: dropped.append(number)
        made.append((connection, room.enter(connection)))
    return made, dropped


def test_the_one_that_waited_longest_goes():
    """One that has asked meanwhile has not waited for so long."""
    room = Room(CAP)
    made, dropped = arrivals(room, CAP)
    room.work(made[0][0])
    room.wait(made[0][0])
    assert room.enter(Connection("b"))
    assert room.enter(Connection("b"))
    assert dropped == [1, 2]


def test_who_is_at_work_stays():
    """Nobody is let in where all are, and no request is begun long before."""
    room = Room(CAP)
    made, dropped = arrivals(room, CAP)
    begun = [room.work(connection) for connection, _ in made]
    assert begun == [True] * (CAP - WAITING_MIN) + [False] * WAITING_MIN
    assert room.work(made[-1][0], at_any_rate=True)
    assert not room.enter(Connection("b"))
    assert dropped == []


def test_an_address_makes_room_among_its_own():
    """Others are not touched; where none of its own waits it is refused."""
    room = Room(CAP, None)
    others, gone = arrivals(room, CAP // 2 - 1, "b")
    own, dropped = arrivals(room, CAP // 2 + 2, "a")
    assert (gone, dropped) == ([], [0, 1])
    for connection, _ in own:
        room.work(connection)
    assert not room.enter(Connection("a"))
    assert room.enter(Connection("c"))
    assert len(others) == CAP // 2 - 1


@given(st.lists(st.tuples(st.sampled_from(["enter", "work", "wait", "leave"]), st.integers(0, 40)), max_size=200))
def test_the_cap_holds(steps):
    """Whatever comes in whatever order; in the end nothing is left."""
    room = Room(CAP, 20)
    known = [Connection("ab"[number % 2]) for number in range(41)]
    inside = set()
    for connection in known:
        connection.drop = lambda connection=connection: inside.discard(connection)
    for step, number in steps:
        connection = known[number]
        if step == "enter":
            if connection not in inside and room.enter(connection):
                inside.add(connection)
        elif connection in inside:
            getattr(room, step)(connection)
            if step == "leave":
                inside.discard(connection)
        assert sum(room.counts.values()) == len(inside) <= CAP
        assert all(sum(other.address == name for other in inside) <= 20 for name in "ab")
    for connection in list(inside):
        room.leave(connection)
    assert sum(room.counts.values()) == 0
    assert not room._addresses


def test_addresses_are_counted_by_who_has_them():
    """A client has a whole network of IPv6; one of IPv4 stays what it is behind a socket for both."""
    assert connections.group("192.0.2.7") == connections.group("::ffff:192.0.2.7") == "192.0.2.7"
    assert connections.group("2001:db8::1") == connections.group("2001:db8::ffff:1%eth0")
    assert connections.group("2001:db8::1") != connections.group("2001:db8:0:1::1")


def test_files_bound_connections(monkeypatch, caplog):
    """The limit is raised as far as it can be; what it does not suffice for is said."""
    limits = {}
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.update(now=both))
    for soft, hard, wanted, allowed in (
        (1024, 1 << 20, 1000, 1000),
        (1024, resource.RLIM_INFINITY, 1000, 1000),
        (1024, 1024, 1000, 384),
        (1 << 20, 1 << 20, 1000, 1000),
        (64, 64, 1000, CAP),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft, hard=hard: (soft, hard))
        caplog.clear()
        assert connections.fitting(wanted) == allowed
        assert bool(caplog.text) == (allowed < wanted)
    assert limits["now"] == (64, 64)
