"""A log that stops answering while processors call: real processes, a broker of its own that is frozen."""

import os
import signal

import pytest
from support.backend import Backend
from support.brokers import OpenBroker
from support.processing import rig
from support.waiting import until

pytestmark = pytest.mark.kafka

IN_FLIGHT = 8
UNACKNOWLEDGED = IN_FLIGHT // 4
LINES = 100


async def test_calls_stop_at_the_bound_of_results_that_the_log_has_not_acknowledged(tmp_path):
    """All calls stay in flight beside the first results; a kill repeats at most those of the bound."""
    broker = OpenBroker(tmp_path / "kafka")
    try:
        kafka = await broker.start()
        with Backend() as backend:
            async with rig(kafka, backend, tmp_path, max_in_flight=IN_FLIGHT) as made:
                process = await made.process().ready()
                backend.hold()
                batch_id = await made.batch(LINES)
                await until(lambda: backend.in_flight == IN_FLIGHT, "calls")
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGSTOP)
                backend.release()
                await until(lambda: backend.calls == IN_FLIGHT + UNACKNOWLEDGED, "calls beside the results")
                await until(lambda: not backend.in_flight, "the last answers")
                process.kill()
                assert backend.calls == IN_FLIGHT + UNACKNOWLEDGED
                os.kill(broker.pid, signal.SIGCONT)
                await made.process().ready()
                lines = await made.collect(batch_id, LINES)
                assert len({line["custom_id"] for line in lines}) == LINES
                assert backend.repeats <= IN_FLIGHT + UNACKNOWLEDGED
    finally:
        if broker.pid is not None:
            os.kill(broker.pid, signal.SIGCONT)
        broker.stop()
