"""The connections of a listener never exceed the cap, and the longest idle one is closed first."""

import resource

from hypothesis import given
from hypothesis import strategies as st

from tidemill.runtime import connections
from tidemill.runtime.connections import IDLE_MIN, Connection, ConnectionTable

CAP = 2 * IDLE_MIN


def arrivals(table, count, address="a"):
    """Add so many connections; they, and the numbers of those that were closed."""
    closed = []
    made = []
    for number in range(count):
        connection = Connection(address)
        connection.close = lambda number=number: closed.append(number)
        made.append((connection, table.add(connection)))
    return made, closed


def test_the_longest_idle_connection_is_closed():
    """A request makes a connection the newest."""
    table = ConnectionTable(CAP)
    made, closed = arrivals(table, CAP)
    table.set_busy(made[0][0])
    table.set_idle(made[0][0])
    assert table.add(Connection("b"))
    assert table.add(Connection("b"))
    assert closed == [1, 2]


def test_busy_connections_stay():
    """A listener whose connections are all busy adds none, and refuses requests before that."""
    table = ConnectionTable(CAP)
    made, closed = arrivals(table, CAP)
    begun = [table.set_busy(connection) for connection, _ in made]
    assert begun == [True] * (CAP - IDLE_MIN) + [False] * IDLE_MIN
    assert table.set_busy(made[-1][0], is_exempt=True)
    assert not table.add(Connection("b"))
    assert closed == []


def test_an_address_loses_its_own_connections():
    """Not those of others; if it has no idle one, its new connection is refused."""
    table = ConnectionTable(CAP, None)
    others, gone = arrivals(table, CAP // 2 - 1, "b")
    own, closed = arrivals(table, CAP // 2 + 2, "a")
    assert (gone, closed) == ([], [0, 1])
    for connection, _ in own:
        table.set_busy(connection)
    assert not table.add(Connection("a"))
    assert table.add(Connection("c"))
    assert len(others) == CAP // 2 - 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "set_busy", "set_idle", "remove"]), st.integers(0, 40)), max_size=200
    )
)
def test_the_cap_holds(steps):
    """For any sequence of events; in the end the table is empty."""
    table = ConnectionTable(CAP, 20)
    known = [Connection("ab"[number % 2]) for number in range(41)]
    inside = set()
    for connection in known:
        connection.close = lambda connection=connection: inside.discard(connection)
    for step, number in steps:
        connection = known[number]
        if step == "add":
            if connection not in inside and table.add(connection):
                inside.add(connection)
        elif connection in inside:
            getattr(table, step)(connection)
            if step == "remove":
                inside.discard(connection)
        assert sum(table.counts.values()) == len(inside) <= CAP
        assert all(sum(other.address == name for other in inside) <= 20 for name in "ab")
    for connection in list(inside):
        table.remove(connection)
    assert sum(table.counts.values()) == 0
    assert not table._addresses


def test_addresses_are_counted_by_client():
    """A client may have an IPv6 network; an IPv4 address stays itself behind a socket for both."""
    assert connections.address_key("192.0.2.7") == connections.address_key("::ffff:192.0.2.7") == "192.0.2.7"
    assert connections.address_key("2001:db8::1") == connections.address_key("2001:db8::ffff:1%eth0")
    assert connections.address_key("2001:db8::1") != connections.address_key("2001:db8:0:1::1")


def test_the_file_limit_bounds_connections(monkeypatch, caplog):
    """The limit is raised as far as possible; the log has the rest."""
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
        assert connections.raise_file_limit(wanted) == allowed
        assert bool(caplog.text) == (allowed < wanted)
    assert limits["now"] == (64, 64)
