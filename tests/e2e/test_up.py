"""`tidemill up`: starts, faults and stops of a whole installation."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress

import psutil
import pytest
from support.process_memory import held
from support.stack import KEPT, KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.local import data_folder

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

COMMAND = (sys.executable, "-m", "tidemill", "up")
SECRETS = {
    name: f"secret-of-{name.lower().replace('_', '-')}-0123456789"
    for name in ("BACKEND_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
}
TWO = {"TIDEMILL_PROCESSOR_PROCESSES": "2", "LC_ALL": "C", **SECRETS}
ODD = """Größe, 'q' "d" 100% %d #?&$HOME ${x} {y} <a&b> back\\slash; a:b *[z] -n"""
"""A folder name with characters that configurations, addresses and patterns must escape."""


@pytest.fixture(scope="module")
def up(tmp_path_factory, inference):
    """One installation for this file; the tests follow its life in order."""
    models = inference.models("chat")
    models["chat"]["backends"][0]["api_key_env"] = "BACKEND_KEY"
    stack = Stack(tmp_path_factory.mktemp("up") / ODD / ".tidemill", models, TWO)
    stack.cwd = stack.data.parent
    stack.cwd.mkdir()
    # A file of the user with the name of a module that we import.
    (stack.cwd / "email.py").write_text("raise RuntimeError('a file of the user was imported')\n")
    with stack:
        yield stack


def environ():
    """The environment of this process without settings of Tidemill."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_") or name in KEPT}


def refused(data, *options):
    """Exit code and output of an `up` that cannot start."""
    done = subprocess.run(
        [*COMMAND, "--data", str(data), *options],
        capture_output=True,
        check=False,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        env=environ(),
        cwd=data.parent,
    )
    return done.returncode, done.stderr


def lives(pid):
    """Whether a process runs and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running(stack):
    """The content of `run.json`."""
    return json.loads((stack.data / "run.json").read_text())


def every_pid(stack):
    """All processes of the installation, the supervisor first."""
    now = running(stack)
    server = [
        child.pid for child in psutil.Process(now["pid"]).children() if is_titled(child, "tidemill fork-server")
    ]
    return [now["pid"], *server, *(pid for pids in now["processes"].values() for pid in pids)]


def is_titled(process, title):
    """Whether a process shows this title."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).strip("\0 ") == title
    return False


def test_a_second_up_is_refused(tmp_path):
    """It names the process that holds the folder, and changes nothing."""
    with data_folder.locked(tmp_path / "data"):
        code, words = refused(tmp_path / "data")
    assert code == 2
    assert f"process {os.getpid()}" in words
    assert "Traceback" not in words


def test_a_port_in_use_is_reported_before_anything_starts(tmp_path):
    """Nothing is downloaded and no process starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, words = refused(tmp_path / "data", "--port", str(port))
    assert code == 2
    assert words.startswith(f"tidemill: port {port} ")
    assert "stopped" not in words
    assert not (tmp_path / "data" / "kafka").exists()


def test_invalid_settings_are_reported(tmp_path):
    """In one line, without a traceback."""
    (tmp_path / "bad.toml").write_text("partitions = 0\n")
    code, words = refused(tmp_path / "data", "--config", str(tmp_path / "bad.toml"))
    assert code == 2
    assert "partitions" in words
    assert "Traceback" not in words


def test_the_ready_line_and_run_json(up):
    """One line has the address of the API, the others are of `up` itself; `run.json` names all processes."""
    said = up.log.read_text().splitlines()
    assert sum(line.startswith("Tidemill is ready at ") for line in said) == 1
    assert [line for line in said if not line.startswith(("tidemill: ", "Tidemill is ready at "))] == []
    now = running(up)
    assert set(now["processes"]) == {"api", "ingest", "processors", "results", "webhooks", "kafka"}
    assert len(now["processes"]["processors"]) == 2
    assert {"processors", "processors-2"} <= set(now["health"])
    assert all(lives(pid) for pid in every_pid(up))
    least = psutil.Process(now["pid"]).nice()
    nice = {name for name, pids in now["processes"].items() if psutil.Process(pids[0]).nice() > least}
    assert nice == {"ingest", "processors", "results", "webhooks"}
    request = urllib.request.Request(f"{now['api']}/models", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_each_process_has_only_its_own_secrets(up):
    """No process has a key in its memory that it does not need, nor has the one that they were forked from.

    The api reads the signing key from its file, and gets the key of the API from clients.
    """
    signing = (up.data / "signing_key").read_text().strip()
    known = {**SECRETS, "TIDEMILL_API_KEY": KEY, "TIDEMILL_SIGNING_KEY": signing}
    processes = running(up)["processes"]
    server = psutil.Process(processes["api"][0]).parent()
    found = {}
    for name, pids in {**processes, "fork-server": [server.pid]}.items():
        texts = {text for pid in pids for text in held(pid, known.values())}
        found[name] = {secret for secret, text in known.items() if text in texts}
    of_api = found.pop("api")
    assert "TIDEMILL_API_KEY" in of_api, "or the rest would prove nothing"
    assert of_api <= {"TIDEMILL_API_KEY", "TIDEMILL_SIGNING_KEY"}
    assert found == {
        "ingest": set(),
        "processors": {"BACKEND_KEY"},
        "results": set(),
        "webhooks": set(),
        "kafka": set(),
        "fork-server": set(),
    }


@pytest.mark.parametrize("name", ["api", "results", "processors", "webhooks", "kafka"])
def test_a_killed_process_is_restarted(up, name):
    """`run.json` follows, and the address stays."""
    before = running(up)
    os.kill(before["processes"][name][0], signal.SIGKILL)
    after = wait_until(
        lambda: (
            (now := running(up))["processes"][name] != before["processes"][name]
            and len(now["processes"][name]) == len(before["processes"][name])
            and now
        ),
        f"a new {name}",
    )
    assert (after["api"], after["kafka"]) == (before["api"], before["kafka"])


def test_no_process_outlives_a_killed_up(up):
    """The folder can be used again."""
    pids = every_pid(up)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not any(lives(pid) for pid in pids), "the end of all")
    up.stop()
    up.start()
    assert running(up)["pid"] != pids[0]


def test_a_stop_leaves_no_process(up):
    """Nor `run.json`; Kafka stops in order, also if the program that started `up` adds SIGTERM to a Ctrl-C."""
    pids = every_pid(up)
    os.kill(up.supervisor, signal.SIGINT)
    assert up.stop() == 0
    assert (up.data / "kafka" / "log" / ".kafka_cleanshutdown").exists()
    assert not any(lives(pid) for pid in pids)
    assert not (up.data / "run.json").exists()


def test_up_ends_if_its_records_are_deleted(tmp_path, inference):
    """It says so, and does not restart the broker for ever."""
    stack = Stack(tmp_path / "data", inference.models("chat"))
    with stack, (tmp_path / "data" / "up.log").open() as log:
        pids = every_pid(stack)
        shutil.rmtree(stack.data, ignore_errors=True)
        wait_until(lambda: not any(lives(pid) for pid in pids), "the end of all")
        said = log.read()
        assert stack.stop() == 1
    assert f"the records in {stack.data / 'kafka'} were deleted or moved" in said
    assert "Traceback" not in said


def test_all_files_are_in_the_data_folder(up):
    """Nothing is created elsewhere."""
    assert {path.name for path in up.data.parent.iterdir()} == {".tidemill", "email.py"}
    assert [path.name for path in up.data.parent.parent.iterdir()] == [ODD]


@pytest.mark.parametrize("latest", ["", "tidemill fork-server", "tidemill ingest"])
def test_a_signal_during_the_start(latest, tmp_path):
    """It stops in order and leaves no process, whichever process is the latest."""
    command = [*COMMAND, "--port", "0", "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environ(), cwd=tmp_path) as process:
        supervisor = psutil.Process(process.pid)

        def found():
            children = supervisor.children(recursive=True)
            return children if not latest or any(is_titled(child, latest) for child in children) else []

        children = wait_until(found, "the latest process")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS_MAX) == 0
    assert not any(lives(child.pid) for child in children)
