"""Kill each process of the installation once in the middle of a batch: the batch completes, exactly.

Invariant 5: restarting is enough, and calls made twice are at most those in flight at the kill.
"""

import pytest
from openai import OpenAI
from support.batches import check_numbered, ended, numbered, refusing
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 10_000
IN_FLIGHT = 64
KILL_AFTER = 2_000
"""Calls made when the process is killed."""


@pytest.fixture(scope="module")
def killable(tmp_path_factory, inference):
    with Stack(tmp_path_factory.mktemp("killable"), inference.models("chat", max_in_flight=IN_FLIGHT)) as stack:
        yield stack


@pytest.fixture(scope="module")
def input_file(killable):
    client = OpenAI(base_url=killable.api, api_key=KEY)
    return client.files.create(file=("in.jsonl", b"".join(numbered(0, LINES))), purpose="batch").id


@pytest.mark.parametrize("stage", ["processors", "results", "ingest", "api", "kafka", "fork-server"])
def test_a_killed_process_costs_nothing(stage, killable, backend, input_file):
    """`kill -9` of one process in the middle of 10,000 lines: nothing lost, nothing double.

    All stages end with the fork server.
    """
    backend.reset(refusing)
    client = OpenAI(base_url=killable.api, api_key=KEY, max_retries=10)
    batch = client.batches.create(
        input_file_id=input_file, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait_until(lambda: backend.calls >= KILL_AFTER, f"{KILL_AFTER} calls")
    killed = killable.kill_fork_server() if stage == "fork-server" else set(killable.kill(stage))
    assert backend.calls < LINES, "the kill came too late to prove anything"
    stages = ("processors", "api") if stage == "fork-server" else (stage,)
    for each in stages:
        wait_until(lambda: (pids := killable.pids(each)) and killed.isdisjoint(pids), f"{each} is back")  # noqa: B023
    over = ended(client, batch.id)
    check_numbered(client, over, 0, LINES)
    repeats_max = IN_FLIGHT + IN_FLIGHT // 4 if "processors" in stages else 0
    assert backend.repeats <= repeats_max
