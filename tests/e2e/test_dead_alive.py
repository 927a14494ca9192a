"""Hung processes are detected and restarted; the health of each stage is reported truthfully."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from openai import OpenAI
from support.batches import create, ended, one_line
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

STAGES = ("api", "ingest", "processors", "results")


@pytest.fixture(scope="module")
def watched(tmp_path_factory, inference):
    """One installation for this file."""
    with Stack(tmp_path_factory.mktemp("watched") / "data", inference.models("chat")) as stack:
        yield stack


def health(stack, stage, path, seconds=WAIT_SECONDS_MAX):
    """Status and faults; None without an answer in this time."""
    address = json.loads((stack.data / "run.json").read_text())["health"][stage]
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=seconds) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return None


def status(stack, stage, path):
    """Its status; 0 without an answer."""
    return (health(stack, stage, path) or (0,))[0]


def is_well(stack, stage):
    return all(status(stack, stage, path) == 200 for path in ("/livez", "/readyz"))


def run_one(stack):
    """A batch of one line, to its end."""
    client = OpenAI(base_url=stack.api, api_key=KEY, max_retries=5)
    over = ended(client, create(client, one_line()))
    assert over.status == "completed"


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_well(watched, stage):
    """Alive, ready, and with metrics."""
    wait_until(lambda: is_well(watched, stage), f"health of {stage}")
    code, text = health(watched, stage, "/metrics")
    assert code == 200
    assert b"tidemill_" in text


def test_stopped_stages_are_restarted(watched):
    """SIGSTOP stands for a blocked event loop: without heartbeats the supervisor starts another process."""
    stopped = {stage: watched.pids(stage) for stage in ("results", "api")}
    for stage, pids in stopped.items():
        os.kill(pids[0], signal.SIGSTOP)
        assert health(watched, stage, "/livez", seconds=2) is None
    for stage, pids in stopped.items():
        wait_until(
            lambda stage=stage, pids=pids: watched.pids(stage) not in ([], pids),
            f"another {stage}",
        )
        wait_until(lambda stage=stage: is_well(watched, stage), f"health of {stage}")
        assert any(f"{stage} sent no heartbeat for" in end for end in watched.ends())
    run_one(watched)


def test_a_stopped_supervisor_ends_no_stage(watched):
    """After `up` was stopped for longer than the heartbeat timeout, all stages are still the same processes."""
    before = watched.ends()
    pid = json.loads((watched.data / "run.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    (api,) = map(psutil.Process, watched.pids("api"))
    began = api.cpu_times().user
    # Wait until the stages have done some work in the meantime.
    for _ in range(3):
        run_one(watched)
    assert api.cpu_times().user >= began
    os.kill(pid, signal.SIGCONT)
    run_one(watched)
    assert watched.ends() == before


def test_without_its_broker_a_stage_lives_and_is_not_ready(watched):
    """And is ready again, the same process, when the broker is back."""
    before = watched.ends()
    (broker,) = watched.pids("kafka")
    os.kill(broker, signal.SIGSTOP)
    try:
        for stage in STAGES:
            wait_until(lambda stage=stage: status(watched, stage, "/readyz") == 503, f"{stage} is not ready")
            wait_until(lambda stage=stage: status(watched, stage, "/livez") == 200, f"{stage} is alive")
    finally:
        os.kill(broker, signal.SIGCONT)
    for stage in STAGES:
        wait_until(lambda stage=stage: is_well(watched, stage), f"{stage}")
    run_one(watched)
    assert watched.ends() == before


HARMED = """
import asyncio, signal, sys, threading, time
from aiokafka.errors import GroupAuthorizationFailedError
from tidemill.configuration import settings
from tidemill.faust import stage_runner
from tidemill.results.app import Results

HARM = sys.argv[1]

class Harmed(Results):
    async def start(self):
        apps = await super().start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.harm)
        return apps

    def harm(self):
        coordinator = self.app.consumer._thread._consumer._coordinator
        if HARM == "block":
            time.sleep(3600)
        if HARM == "end":
            coordinator._coordination_task.cancel()
        if HARM == "park":
            # As when a broker's access rules change: the coordinator meets an error that it leaves to the user.
            async def refused(*_):
                raise GroupAuthorizationFailedError(coordinator.group_id)
            coordinator.ensure_active_group = refused
            # And while no fetch waits, as under backpressure: a waiting fetch would raise.
            coordinator._subscription.abort_waiters = lambda error: None
            coordinator.request_rejoin()

stage_runner.run(settings.load(), "results", Harmed)
"""


@contextmanager
def harmed(watched, folder, harm):
    """A results process that SIGUSR1 will harm, the pipe on which it reports readiness, and its log."""
    folder.mkdir()
    environ = {
        **os.environ, **watched.way_in("results"), "TIDEMILL_DATA": str(folder), "TIDEMILL_REPLICATION": "1",
        "TIDEMILL_STORE": (watched.data / "store").as_uri(),
    }  # fmt: skip
    log = folder / "log"
    reading, writing = os.pipe()
    environ["TIDEMILL_NOTIFY_FD"] = str(writing)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", HARMED, harm], env=environ, stdout=output, stderr=output, pass_fds=[writing]
        )
    os.close(writing)
    os.set_blocking(reading, False)
    try:
        yield process, reading, log
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def test_stages_that_are_dead_end_themselves(watched, tmp_path):
    """Without a supervisor, as in a cluster: the exit code is not 0, and the log says why."""
    words = {"park": "collect its error", "end": "has ended", "block": "the event loop is blocked"}
    with ExitStack() as stack:
        # All at once, since each symptom must last for a while.
        found = {harm: stack.enter_context(harmed(watched, tmp_path / harm, harm)) for harm in words}
        for harm, (_, reading, _) in found.items():
            wait_until(lambda reading=reading: _said(reading), f"readiness of {harm}")
        for process, _, _ in found.values():
            process.send_signal(signal.SIGUSR1)
        for harm, (process, _, log) in found.items():
            wait_until(
                lambda process=process: process.poll() is not None,
                f"end of {harm}",
            )
            assert process.returncode > 0, log.read_text()
            assert words[harm] in log.read_text()
    run_one(watched)


def _said(reading):
    try:
        return b"ready" in os.read(reading, 4096)
    except BlockingIOError:
        return False
