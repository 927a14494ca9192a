"""An unreadable line of the input ends like any other: in the error file, without a `custom_id`."""

import json

import pytest
from support.facts import NOW, batch_id, commands
from support.simulated import Simulation

from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested
from tidemill.schemas.resources.batch import Status

GOOD = b'{"custom_id":"a\\u0062","method":"POST","url":"/v1/messages","body":{"model":"m"}}'
BAD = {
    "cut": b'{"custom_id":"x","body":{',
    "no object": b"[1]",
    "no body": b'{"custom_id":"x"}',
    "no custom_id": b'{"body":{}}',
    "a number": b'{"custom_id":5,"body":{}}',
    "empty": b'{"custom_id":"","body":{}}',
    "long": b'{"custom_id":"%s","body":{}}' % (b"x" * 10_000),
    "not UTF-8": b'{"custom_id":"\xff","body":{}}',
    "half a pair": b'{"custom_id":"\\ud800","body":{}}',
    "deep": b'{"body":%s,"custom_id":"x"}' % (b"[" * 5_000 + b"]" * 5_000),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
async def test_a_cancelled_batch_ends_with_every_line(bad):
    """On an endpoint where lines fail alone, the cancel may come before the error line of a bad one."""
    simulation = Simulation(1)
    simulation.store.objects["files/in0"] = GOOD + b"\n" + bad + b"\n"
    cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 2)
    simulation.log.events += [*commands(0, 2), (topics.COMMANDS.name, (), codec.encode(cancel))]
    await simulation.run(crashes_max=0)
    batch = simulation.log.published[-1].batch
    assert (batch.status, batch.tidemill.receipt.errors.lines) == (Status.CANCELLED, 2)
    content = simulation.store.objects[simulation.log.files[batch.error_file_id]]
    good, odd = map(json.loads, content.splitlines())
    assert good["custom_id"] == "ab"
    assert odd["custom_id"] in {None, "x"}
    assert odd["error"]["code"] == "batch_cancelled"
