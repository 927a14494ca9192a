"""`tidemill up`: messages, signals, and the keys that it creates and passes on."""

import asyncio
import errno
import os
import re
import signal

import pytest
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.settings import Settings
from tidemill.local import data_folder, demo
from tidemill.local import up as module
from tidemill.local.child import ChildError
from tidemill.local.embedded import kraft
from tidemill.local.embedded.broker import Broker
from tidemill.local.up import FAILED, WRONG, Up, main
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access

SET = "sk-set-by-the-operator-0123456789"


def test_without_a_model_up_says_what_to_configure(tmp_path, monkeypatch, capsys):
    """Before it creates, downloads or starts anything."""
    monkeypatch.setattr(demo, "_MODULES", ("no_such_module",))
    assert main(Settings(data=tmp_path / "data"), None) == WRONG
    said = capsys.readouterr().err
    assert said.startswith("tidemill: no model is configured.")
    assert " init` looks for inference servers" in said
    assert "pip install 'tidemill[demo]'" in said
    assert "stopped" not in said
    assert list(tmp_path.iterdir()) == []


def disk_is_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda data, _: (data / "api_key").write_text("sk-schlüssel"),
            (WRONG, "api_key cannot be read: it is not ASCII"),
        ),
        (lambda data, _: (data / "api_key").mkdir(), (WRONG, "api_key cannot be read: Is a directory")),
        (
            lambda _, patch: patch.setattr(data_folder, "kept_key", disk_is_full),
            (WRONG, "No space left on device"),
        ),
        (lambda _, patch: patch.setattr(kraft, "is_free", lambda _: False), (FAILED, "no free port was found")),
    ],
    ids=["not ascii", "unreadable", "full", "no port"],
)
def test_a_start_that_fails_says_why_in_one_line(tmp_path, monkeypatch, capsys, spoil, expected):
    """Files that cannot be used, and no free port."""
    (data := tmp_path / "data").mkdir(mode=0o700)
    spoil(data, monkeypatch)
    models = {"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}
    assert main(Settings(data=data, port=0, kafka="127.0.0.1:9", models=models), None) == expected[0]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"tidemill: .*({expected[1]})", line)


@pytest.mark.parametrize(("number", "presses"), [(signal.SIGINT, "again"), (signal.SIGTERM, "twice")])
def test_a_stop_says_how_to_kill_everything(tmp_path, capsys, number, presses):
    """A SIGTERM does not count as a Ctrl-C."""
    Up(Settings(data=tmp_path), None)._on_signal(number)
    assert f"press Ctrl-C {presses} to kill everything" in capsys.readouterr().err


async def test_a_kafka_that_starts_slowly_is_explained(tmp_path, monkeypatch, capsys):
    """It may check its records for minutes."""
    up, said = Up(Settings(data=tmp_path), None), asyncio.Event()

    async def prepare(_):
        return

    async def start(*_, **__):
        await asyncio.wait_for(said.wait(), WAIT_SECONDS_MAX)
        raise ChildError("ended")

    monkeypatch.setattr(Broker, "prepare", prepare)
    monkeypatch.setattr(up._supervisor, "start", start)
    monkeypatch.setattr(module, "KAFKA_SILENT_SECONDS", 0)
    monkeypatch.setattr(module, "_say", lambda line: (module.say(line), said.set()))
    with pytest.raises(ChildError):
        await up._start_kafka()
    assert re.search(rf"Kafka is still starting.*{tmp_path}/logs/kafka\.log", capsys.readouterr().out)


def test_only_a_second_ctrl_c_kills_everything(tmp_path, monkeypatch):
    """A program that started `up` may send SIGTERM after a Ctrl-C that reached both; a closed terminal SIGHUP."""
    up, killed = Up(Settings(data=tmp_path), None), []
    monkeypatch.setattr(up._supervisor, "kill", lambda: killed.append("all"))
    monkeypatch.setattr(os, "_exit", killed.append)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        up._on_signal(number)
        assert up._stopping.is_set()
    assert killed == []
    up._on_signal(signal.SIGINT)
    assert killed == ["all", FAILED]


def kept(folder, **settings):
    """The shown key, and the secret variables of each stage."""
    up = Up(Settings(data=folder, **settings), None)
    return up._keep_secrets(), up._secrets


def test_a_new_key_is_shown_once(tmp_path):
    """Later starts show where it is."""
    shown, secrets = kept(tmp_path)
    key, is_new = data_folder.kept_key(tmp_path)
    assert (shown, is_new) == (key, False)
    again, secrets_again = kept(tmp_path)
    assert again == f"{access.hint(key)}, in {tmp_path / 'api_key'}"
    assert key not in again
    assert secrets == secrets_again
    assert kept(tmp_path, api_key=SET)[0] == "$TIDEMILL_API_KEY"


def test_each_stage_gets_only_its_keys(tmp_path):
    """The api gets the file of the signing key, ingest its public key; of the API key at most the digest."""
    _, secrets = kept(tmp_path, api_key=SET)
    signer = Signer.read((tmp_path / "signing_key").read_text().strip())
    assert secrets == {
        "api": {
            "TIDEMILL_SIGNING_KEY_FILE": str(tmp_path / "signing_key"),
            "TIDEMILL_API_KEY_SHA256": access.digest(SET),
        },
        "ingest": {
            "TIDEMILL_VERIFY_KEYS": signer.public,
            "TIDEMILL_INTAKE_API_KEYS": "true",
            "TIDEMILL_API_KEY_SHA256": access.digest(SET),
        },
    }


@pytest.mark.parametrize(("asked", "is_on"), [(None, "false"), (True, "true"), (False, "false")])
def test_api_keys_of_producers_are_accepted_only_on_the_own_kafka(tmp_path, asked, is_on):
    """Others may read the records of an external one. The setting changes it."""
    made = Signer.made()
    _, secrets = kept(tmp_path, kafka="k:1", signing_key=made.text, intake_api_keys=asked, verify_keys=["x"])
    assert secrets["ingest"]["TIDEMILL_INTAKE_API_KEYS"] == is_on
    assert secrets["ingest"]["TIDEMILL_VERIFY_KEYS"] == f"{made.public},x"
    assert ("TIDEMILL_API_KEY_SHA256" in secrets["ingest"]) is (is_on == "true")
    assert "TIDEMILL_SIGNING_KEY_FILE" not in secrets["api"]
    assert not (tmp_path / "signing_key").exists()
