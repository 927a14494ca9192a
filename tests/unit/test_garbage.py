"""Objects of finished lines are freed at once: full collections are rare, so garbage in cycles would add up."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.dispatching import World
from support.facts import commands, lines
from support.scripted_server import OK
from support.simulated import Simulation

from tidemill.api.uploads.multipart import Form
from tidemill.processors.http.connection import Connection
from tidemill.processors.memory_budget import LargeReplies
from tidemill.schemas import ids

FEW, MANY = 100, 2_000
CYCLES_MAX = 30
"""Objects in cycles that many lines may leave beyond those of a few: objects of a batch or a process."""


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """The objects of a block that only a collection frees, by their type."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(type(each).__qualname__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def of_processors(tmp_path, count):
    """Lines that are called, some of them more than once, by records of ten."""
    world, batch_id = World(tmp_path, faults=0.1), ids.new_batch_id()
    with garbage() as found:
        for first in range(0, count, 10):
            world.publish(batch_id, first, 10)
        await world.finish()
    return found


async def of_results(tmp_path, count):
    """Results of lines, some of them twice, until the files of their batch are written."""
    del tmp_path
    simulation = Simulation(1, part_bytes=20_000)
    line = b'{"custom_id":"id-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n'
    simulation.store.objects["files/in0"] = b"".join(line % index for index in range(count))
    simulation.log.events += [*commands(0, count), *lines(simulation.chance, 0, count)]
    with garbage() as found:
        await simulation.run(crashes_max=0)
    return found


@pytest.mark.parametrize("run", [of_processors, of_results])
async def test_garbage_in_cycles_does_not_grow_with_the_lines(tmp_path, run):
    """In a process that has run for a year, too."""
    few, many = await run(tmp_path, FEW), await run(tmp_path, MANY)
    more = many - few
    assert more.total() <= CYCLES_MAX, more.most_common(5)


def read_form():
    """A form that was read."""
    form = Form("multipart/form-data; boundary=x")
    form.feed(b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nhello\r\n--x--\r\n')
    assert form.is_whole
    return form


def lost_connection():
    """A connection that its server closed after an answer."""
    connection = Connection(LargeReplies())
    connection.data_received(OK)
    connection.connection_lost(None)
    return connection


@pytest.mark.parametrize("made", [read_form, lost_connection])
async def test_what_was_used_up_is_freed_at_once(made):
    """A client uploads many files, and a server may close the connection after each call."""
    gc.disable()
    try:
        left = weakref.ref(made())
        assert left() is None
    finally:
        gc.enable()
