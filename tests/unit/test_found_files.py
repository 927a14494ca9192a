"""The files that a command finds by itself in the current folder, which may be one of all users, like `/tmp`."""

import json

import pytest

from tidemill import ownership
from tidemill.client import catalog
from tidemill.client.errors import UsageError
from tidemill.client.runs.journal import Journal
from tidemill.client.target import Target, find
from tidemill.configuration.settings import SettingsError, load

LOCAL = "http://127.0.0.1:8080/v1"
CONTENTS = {
    "tidemill.toml": '[servers.gpu]\nurl = "http://127.0.0.1:1/v1"\n',
    ".tidemill/run.json": json.dumps({"api": LOCAL}),
    ".tidemill/api_key": "local",
}
READERS = {
    "the settings": ("tidemill.toml", lambda: load().servers["gpu"].url),
    "apply": ("tidemill.toml", lambda: catalog._tables(None)["servers"]["gpu"]["url"]),
    "the address": (".tidemill/run.json", lambda: target("a key").base_url),
    "the key": (".tidemill/api_key", lambda: target(None).api_key),
}
"""What reads them, and returns some of their content."""


def target(api_key: str | None) -> Target:
    """The service that a command talks to."""
    return find(base_url=None, api_key=api_key, data=None, environ={})


def become_another(monkeypatch) -> None:
    """From now on this process belongs to another user, and root is not trusted."""
    monkeypatch.setattr(ownership.os, "geteuid", lambda: 54_321)
    monkeypatch.setattr(ownership, "ROOT", 54_321)


def make_link(file) -> None:
    """Move a file away, and leave a link to it."""
    file.symlink_to(file.rename(file.with_name("elsewhere")))


FAULTS = {
    "of another user": lambda _, monkeypatch: become_another(monkeypatch),
    "that all may write to": lambda file, _: file.chmod(0o666),
    "that is a link": lambda file, _: make_link(file),
    "that is a dangling link": lambda file, _: (make_link(file), file.with_name("elsewhere").unlink()),
    "that is a folder": lambda file, _: (file.unlink(), file.mkdir()),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with these files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEMILL_CONFIG", raising=False)
    (tmp_path / ".tidemill").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_another_user_could_have_written_is_not_used(folder, monkeypatch, reader, fault):
    """A command sends keys to the addresses in such files."""
    name, read = READERS[reader]
    assert read()
    FAULTS[fault](folder / name, monkeypatch)
    with pytest.raises((SettingsError, PermissionError, UsageError)) as caught:
        read()
    wanted = {"the settings": "name it with --config", "apply": "name it with -f"}
    assert wanted.get(reader, "no ") in str(caught.value)


def test_a_named_settings_file_is_used_anyway(folder, monkeypatch):
    """Whoever it belongs to: its user has chosen it, with an option or a variable."""
    become_another(monkeypatch)
    file = folder / "tidemill.toml"
    assert load(file).servers
    assert catalog._tables(file)["servers"]
    monkeypatch.setenv("TIDEMILL_CONFIG", str(file))
    assert load().servers


def test_a_missing_settings_file_is_none(folder):
    """The defaults hold."""
    (folder / "tidemill.toml").unlink()
    assert not load().servers


@pytest.mark.parametrize("is_link", [False, True])
def test_a_journal_of_another_user_is_not_used(folder, monkeypatch, is_link):
    """Nor a link of another user to one."""
    journal = folder / "out.jsonl.tidemill"
    journal.mkdir()
    if is_link:
        make_link(journal)
    become_another(monkeypatch)
    with pytest.raises(UsageError, match="belongs to another user"), Journal(journal):
        pass
