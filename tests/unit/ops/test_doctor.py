"""`tidemill doctor` names what it cannot check, and goes on."""

import asyncio
import errno

import pytest

from tidemill.configuration.settings import Settings, SettingsError
from tidemill.ops import doctor, findings
from tidemill.runtime import server_probe

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
