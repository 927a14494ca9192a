"""Servers and models change while batches run: each change takes effect within seconds, and no line fails."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from openai import OpenAI
from support.backend import WAIT_SECONDS, Backend, Behaviour
from support.batches import OVER, WINDOWS, WINDOWS_SHORT
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = int(os.environ.get("LIVE_LINES", "4000"))
CHAT = "/v1/chat/completions"
_log = logging.getLogger(__name__)


class Service:
    """An installation with the model `chat` on the server `one`, by a settings file."""

    def __init__(self, folder, one, hosts=None):
        self.file = folder / "tidemill.toml"
        self.url = one.url
        self.write(32)
        self.stack = Stack(folder / "data", {}, {"TIDEMILL_WINDOWS": WINDOWS})
        self.stack.cwd = folder
        if hosts is not None:
            self.stack.prefix = hosts.prefix

    def text(self, limit, more=""):
        """A settings file."""
        return (
            f'[servers.one]\nurl = "{self.url}"\nmax_in_flight = {limit}\n[models.chat]\nservers = ["one"]\n{more}'
        )

    def write(self, limit, more=""):
        """Write the settings file."""
        self.file.write_text(self.text(limit, more))

    def start(self):
        self.stack.start()
        self.client = OpenAI(base_url=self.stack.api, api_key=KEY, max_retries=5)

    def command(self, *words):
        """Run `tidemill` as an operator does; returns its output."""
        done = subprocess.run(
            [sys.executable, "-m", "tidemill", *words, "--base-url", self.stack.api, "--api-key", KEY],
            capture_output=True, check=False, text=True, timeout=WAIT_SECONDS_MAX,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def create(self, lines, *, model="chat", window="24h"):
        body = [
            {"custom_id": f"c-{number}", "method": "POST", "url": CHAT,
             "body": {"model": model, "messages": [{"role": "user", "content": f"{model} {number}"}]}}
            for number in range(lines)
        ]  # fmt: skip
        text = b"\n".join(json.dumps(line).encode() for line in body)
        file = self.client.files.create(file=("in.jsonl", text), purpose="batch")
        return self.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=window).id

    def batch(self, batch_id):
        return self.client.batches.retrieve(batch_id)

    def is_over(self, batch_id):
        return self.batch(batch_id).status in OVER

    def ended(self, batch_id):
        """The batch at its end."""
        wait_until(lambda: self.is_over(batch_id), what=f"end of {batch_id}")
        return self.batch(batch_id)

    def reasons(self, batch_id):
        return [wait["reason"] for wait in self.batch(batch_id).tidemill["waiting"]]

    def removed(self):
        """A batch of a hundred lines that had an answer, and then showed that its model is removed."""
        for window in WINDOWS_SHORT[1:]:
            made = self.create(100, window=window)
            wait_until(lambda made=made: self.is_over(made) or self.batch(made).request_counts.completed)
            self.command("models", "remove", "chat")
            wait_until(lambda made=made: self.is_over(made) or "removed" in self.reasons(made))
            if not self.is_over(made):
                break
            self.command("models", "add", "chat", 'servers=["one"]')
        return made

    def shows(self, batch_id, reason):
        takes_effect(lambda: reason in self.reasons(batch_id), f"the reason {reason} on {batch_id}")


def takes_effect(condition, what):
    began = time.monotonic()
    wait_until(condition, what=what)
    _log.info("%s after %.1f s", what, time.monotonic() - began)


class Hosts:
    """A hosts file that only the processes of one installation see, in their own mount namespace."""

    def __init__(self, folder):
        self._file = folder / "hosts"
        self.prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
                       f'mount --bind {self._file} /etc/hosts && exec "$@"', "sh")  # fmt: skip

    @property
    def work(self):
        """Whether the system allows such namespaces."""
        self.write()
        return bool(shutil.which("unshare")) and not subprocess.run([*self.prefix, "true"], check=False).returncode

    def write(self, *addresses):
        """Let `pods.test` resolve to these addresses."""
        self._file.write_text("".join(f"{one} {name}\n" for one, name in self._lines(addresses)))

    @staticmethod
    def _lines(addresses):
        return [("127.0.0.1", "localhost"), *((address, "pods.test") for address in addresses)]


class Pace:
    """The latency of all servers: long until all changes are made, so that the batch outlasts them.

    Calls do not end together: as long as a server is called, some are in flight.
    """

    def __init__(self):
        self.seconds = 0.5

    def __call__(self, body, nth):
        del nth
        number = int(body["messages"][0]["content"].split()[-1])
        return Behaviour(latency_seconds=self.seconds * (1 + number % 8 / 8))


@pytest.fixture
def pace():
    return Pace()


@pytest.fixture
def one(pace):
    with Backend(pace) as made:
        made.lists = ("chat", "new")
        yield made


@pytest.fixture
def service(tmp_path, one):
    made = Service(tmp_path, one)
    made.start()
    yield made
    made.stack.stop()


def test_a_batch_outlives_all_changes(tmp_path, one, pace):
    """A limit is halved; servers come, are discovered, drained and killed; a model comes: the batch is exact."""
    hosts = Hosts(tmp_path)
    if not hosts.work:
        pytest.skip("the system allows no mount namespaces")
    with ExitStack() as stack:
        pods = [ExitStack(), stack]
        first = pods[0].enter_context(Backend(pace, host="127.0.0.2"))
        port = int(first.url.split(":")[2].split("/")[0])
        second = pods[1].enter_context(Backend(pace, host="127.0.0.3", port=port))
        hosts.write("127.0.0.2")
        service = Service(tmp_path, one, hosts)
        stack.callback(service.stack.stop)
        service.start()
        batch = service.create(LINES)
        wait_until(lambda: one.in_flight >= 16, what="many calls in flight")
        service.command("servers", "set", "one", "max_in_flight=8")
        takes_effect(lambda: one.in_flight <= 8, "half the limit")
        added = ("servers", "add", "pods", f"url=http://pods.test:{port}/v1", "discover=dns", "max_in_flight=8")
        assert "Added pods." in service.command(*added)
        assert "warning: server pods does not list chat, for the model chat" in service.command(
            "models", "set", "chat", 'servers=["one", "pods"]'
        )
        takes_effect(lambda: first.in_flight, "calls to the new server")
        hosts.write("127.0.0.2", "127.0.0.3")
        takes_effect(lambda: second.in_flight, "calls to its second address")
        service.command("servers", "drain", "one")
        takes_effect(lambda: not one.in_flight, "no calls to the drained server")
        drained = one.calls
        service.command("models", "add", "new", 'servers=["one"]')
        new = service.create(20, model="new")
        wait_until(lambda: "drained" in service.reasons(new), what=f"the reason drained on {new}")
        assert one.calls == drained
        service.command("servers", "resume", "one")
        takes_effect(lambda: one.calls > drained, "calls to the server again")
        pods[0].close()
        calls = second.calls
        takes_effect(lambda: second.calls > calls + 8, "calls to the address that is left")
        assert service.batch(batch).status == "in_progress"
        pace.seconds = 0.02
        for batch_id, lines in ((batch, LINES), (new, 20)):
            counts = service.ended(batch_id).request_counts
            assert (counts.completed, counts.failed) == (lines, 0)
        text = service.client.files.content(service.batch(batch).output_file_id).text
    assert [json.loads(line)["custom_id"] for line in text.splitlines()] == [f"c-{n}" for n in range(LINES)]
    assert one.in_flight_max <= 32
    assert max(first.in_flight_max, second.in_flight_max) <= 8


def test_a_paused_and_a_removed_model(service, one):
    """Their batches show why they wait, go on at once, or end at their deadline; none fails."""
    service.command("models", "pause", "chat")
    paused = service.create(20)
    wait_until(lambda: service.batch(paused).status == "in_progress", what="an accepted batch")
    service.shows(paused, "paused")
    assert not one.calls
    assert '"paused":true' in service.command("models", "list")
    service.command("models", "resume", "chat")
    takes_effect(lambda: one.calls, "calls again")
    assert service.ended(paused).request_counts.completed == 20
    one.reset(
        lambda body, _: Behaviour(
            latency_seconds=0 if body["messages"][0]["content"] == "chat 0" else WAIT_SECONDS
        )
    )
    removed = service.removed()
    one.hurry()
    refused = service.ended(service.create(1))
    assert (refused.status, refused.errors.data[0].code) == ("failed", "model_not_found")
    batch = service.ended(removed)
    assert batch.status == "expired"
    assert 0 < batch.request_counts.completed < 100
    errors = service.client.files.content(batch.error_file_id).text.splitlines()
    assert {json.loads(line)["error"]["code"] for line in errors} == {"batch_expired"}
    assert all("The model chat was removed" in line for line in errors)


def test_changes_survive_a_restart_until_the_file_changes(service):
    """`up` applies a changed file: it sets the entries of the file, and keeps those that commands added."""
    service.command("servers", "set", "one", "max_in_flight=7")
    service.command("servers", "add", "two", "url=http://127.0.0.1:9/v1")
    assert "key_settings" in service.command("servers", "show", "one")

    def limits():
        listed = service.command("servers", "list").splitlines()
        return {one["id"]: one["settings"].get("max_in_flight") for one in map(json.loads, listed)}

    assert limits() == {"one": 7, "two": None}
    service.stack.stop()
    service.start()
    assert limits() == {"one": 7, "two": None}
    service.stack.stop()
    service.write(9, '[servers.three]\nurl = "http://127.0.0.1:10/v1"\n')
    service.start()
    assert limits() == {"one": 9, "two": None, "three": None}
    service.write(10, "[servers.three")
    takes_effect(lambda: "not applied" in service.stack.log.read_text(), "a warning about the file")
    other = service.file.with_name("other.toml")
    other.write_text(service.text(11))
    planned = service.command("apply", "-f", str(other), "--dry-run")
    service.write(11)
    takes_effect(lambda: limits() == {"one": 11, "two": None}, "the changed file")
    assert "~ server/one: max_in_flight: 9 -> 11" in planned
    assert "- server/three" in planned
    service.command("servers", "set", "one", "max_in_flight=12")
    service.command("apply", "-f", str(service.file))
    assert limits() == {"one": 11, "two": None}
    assert service.ended(service.create(5)).request_counts.completed == 5
