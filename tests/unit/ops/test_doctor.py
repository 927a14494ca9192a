"""`tidemill doctor` names what it cannot check, and goes on."""

import asyncio
import errno
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from support.dependencies import batch_of

from tidemill.configuration.settings import Settings, SettingsError
from tidemill.ops import doctor, findings
from tidemill.runtime import server_probe
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log import dead_letters as letters
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Extras, Status
from tidemill.schemas.resources.waiting import Reason, Waiting

MANY = 3 * doctor.SERVERS_AT_ONCE_MAX


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/keys/encryption_keys"),
            "/keys/encryption_keys: Perm",
        ),
        (ConnectionResetError(), "ConnectionResetError"),
        (SettingsError("signing_key: no"), "signing_key: no"),
        (ValueError("odd"), "odd"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "'utf-8' codec"),
    ],
)
@pytest.mark.parametrize("check", ["_settings", "_store", "_disk", "_unusable", "_servers"])
async def test_a_check_that_fails_is_a_finding(tmp_path, monkeypatch, check, error, text):
    """A damaged file, or one that this user may not read, hides no other finding."""

    async def broken(*_):
        raise error

    monkeypatch.setattr(doctor, check, broken)
    said = []
    assert not await doctor.examine(Settings(data=tmp_path, port=0), None, said.append)
    (line,) = [line for line in said if text in line]
    assert line.startswith("fail")
    assert sum(line.startswith(("ok", "warn", "fail")) for line in said) >= 4
    assert said[-1].endswith("2 fail"), "Kafka, and this one"


def serving(count):
    """As many servers as this, each with a model."""
    models = {f"m{number}": {"backends": [{"url": f"http://s{number}/v1"}]} for number in range(count)}
    return Settings(models=models).serving


async def test_each_server_has_its_own_time(monkeypatch):
    """Very many that do not answer hide neither themselves nor the one that does."""
    monkeypatch.setattr(doctor, "CHECK_SECONDS_MAX", 0.05)

    async def models(server):
        if "//s0/" not in server.base:
            await asyncio.Event().wait()
        return ["m0"]

    async def lacking(*_):
        return frozenset()

    monkeypatch.setattr(server_probe, "models", models)
    monkeypatch.setattr(server_probe, "lacking", lacking)
    said = []
    found = await doctor._run("models", doctor._servers(serving(MANY)), said.append, is_bounded=False)
    assert [one.verdict for one in found].count(findings.Verdict.OK) == 1
    assert len(found) == len(said) == MANY


async def test_a_server_whose_files_are_damaged(monkeypatch):
    """The others are checked."""

    async def models(server):
        if "//s0/" in server.base:
            raise ValueError("its certificate is damaged")
        return server_probe.NoModels("no connection")

    monkeypatch.setattr(server_probe, "models", models)
    found = await doctor._servers(serving(3))
    assert [one.verdict for one in found] == [findings.Verdict.FAIL, findings.Verdict.WARN, findings.Verdict.WARN]


def change(batch_id, *, days=0.0, waits=(), **fields):
    """A record of a batch from some days ago."""
    batch = batch_of(batch_id, tidemill=Extras(waiting=waits), **fields)
    value = codec.encode(BatchRecord(project="p", batch=batch))
    return SimpleNamespace(key=batch_id.encode(), value=value, timestamp=(time.time() - days * 86_400) * 1000)


class Broker:
    """A log with one topic, whose records take a moment each."""

    def __init__(self, monkeypatch, records, seconds=0.0, topic=topics.BATCHES.name):
        self.read = self.files = 0
        self._topic = topic
        self._records = records
        self._seconds = seconds
        monkeypatch.setattr(doctor.history, "reading", self._reading)

    @asynccontextmanager
    async def _reading(self, _):
        yield SimpleNamespace(records=self._since, partitions=lambda _: [0] if self.files else [], ends=self._ends)

    async def _ends(self, *_):
        return [(0, self.files)]

    async def _since(self, topic, since=doctor.history.FIRST):
        for record in self._records if topic == self._topic else ():
            if record.timestamp >= (since.at_ms or 0):
                self.read += 1
                await asyncio.sleep(self._seconds)
                yield record


async def test_batches_of_years_are_not_read(monkeypatch):
    """There may be millions. Those that wait now have changed lately."""
    away = Waiting.of(Reason.SERVER_UNREACHABLE, "no connection", since=0)
    broker = Broker(
        monkeypatch,
        [
            *(change(f"old{number}", days=40, status=Status.COMPLETED) for number in range(100)),
            change("waits", days=20, waits=[away]),
            change("waited", waits=[away]),
            change("waited"),
            change("over", waits=[away], status=Status.EXPIRED),
        ],
    )
    (found,) = await doctor._batches(None)
    assert found.verdict is findings.Verdict.WARN
    assert found.text.startswith("waits waits since")
    assert broker.read == 4


async def test_dead_letters_of_the_last_day_are_counted(monkeypatch):
    """Apart from those that were sent again; older ones are not read."""

    def letter(offset, *, hours):
        headers = letters.headers(f"t/0/{offset}", [], key=None, stage="ingest", reason="odd")
        return SimpleNamespace(headers=headers, value=b"v", timestamp=(time.time() - hours * 3_600) * 1000)

    mark = SimpleNamespace(headers=letters.mark_headers("t/0/2"), value=None, timestamp=time.time() * 1000)
    records = [letter(0, hours=30), letter(1, hours=2), letter(2, hours=1), mark]
    broker = Broker(monkeypatch, records, topic=topics.DEAD.name)
    (found,) = await doctor._dead_letters(None)
    assert found.verdict is findings.Verdict.WARN
    assert found.text.startswith("1 record ")
    assert broker.read == 3


async def test_a_long_read_of_the_log_is_no_fault(monkeypatch, tmp_path):
    """Only one that stands still is: `history` bounds the time without a record."""
    monkeypatch.setattr(doctor, "CHECK_SECONDS_MAX", 0.05)
    records = [change(f"b{number}") for number in range(20)]
    broker = Broker(monkeypatch, records, seconds=0.01)

    async def answers(*_):
        return [findings.ok("kafka", "answers")]

    async def no_contents(_):
        return None

    for check in ("_broker", "_topics", "_clock"):
        monkeypatch.setattr(doctor, check, answers)
    monkeypatch.setattr(doctor, "_contents", no_contents)
    said = []
    await doctor.examine(Settings(data=tmp_path, port=0), "127.0.0.1:9", said.append)
    assert "ok    batches: none of the last 30 days is stalled" in said
    assert broker.read == len(records)


async def test_a_call_longer_than_each_window_is_named():
    """It would outlast its batch, and the settings file may say so by a slip of the unit."""
    backends = [{"url": "http://127.0.0.1:9/v1"}]
    models = {
        "slow": {"backends": backends, "timeout_seconds": 3_601},
        "quick": {"backends": backends, "timeout_seconds": 3_600},
    }
    settings = Settings(kafka="127.0.0.1:9", models=models, windows={"30m": 0, "1h": 0})
    found = [finding for finding in await doctor._settings(settings) if finding.what.startswith("model ")]
    assert [(finding.verdict, finding.what) for finding in found] == [(findings.Verdict.WARN, "model slow")]
    assert found[0].text == "a call may take 3601 s, and no window is as long"


@pytest.mark.parametrize(("files", "verdict"), [(0, findings.Verdict.WARN), (3, findings.Verdict.FAIL)])
async def test_a_store_whose_folder_is_gone(tmp_path, monkeypatch, files, verdict):
    """Its disk is not mounted, if the log has files; else the service makes it. A check makes nothing."""

    async def identities(_, names):
        return dict.fromkeys(names, "cluster/files")

    monkeypatch.setattr(doctor, "topic_identities", identities)
    Broker(monkeypatch, []).files = files
    (found,) = await doctor._store(Settings(data=tmp_path), "127.0.0.1:9")
    assert (found.verdict, "does not exist" in found.text) == (verdict, True)
    assert ("mount or restore it" in found.fix) == (files > 0)
    assert not list(tmp_path.iterdir())
