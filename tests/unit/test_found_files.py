"""The files that a command finds by itself in the current folder, which may be one of all users, like `/tmp`."""

import json

import pytest
import typer

from tidemill import ownership
from tidemill.cli import run
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
    "the address": (".tidemill/run.json", lambda: target("a-key").base_url),
    "the key": (".tidemill/api_key", lambda: target(None).api_key),
}
"""What reads them, and returns some of their content."""


def target(api_key: str | None) -> Target:
    """The service that a command talks to."""
    return find(base_url=None, api_key=api_key, data=None, environ={})


def become_another(monkeypatch) -> None:
    """From now on this process belongs to another user, and root is not trusted."""
    monkeypatch.setattr(ownership.os, "geteuid", lambda: 54_321)
    monkeypatch.setattr(ownership, "ROOT", 54_322)


def make_link(file) -> None:
    """Move a file away, and leave a link to it."""
    file.symlink_to(file.rename(file.with_name("elsewhere")))


FAULTS = {
    "of another user": lambda _, monkeypatch: become_another(monkeypatch),
    "that all may write to": lambda file, _: file.chmod(0o666),
    "that links to one that all may write to": lambda file, _: (make_link(file), file.chmod(0o666)),
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
    wanted = {"the settings": "name it with --config FILE or TIDEMILL_CONFIG=FILE", "apply": "name it with -f"}
    assert wanted.get(reader, "no ") in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_link_of_this_user_is_followed(folder, reader):
    """To the settings of all checkouts, or to a key that a secret's mount holds."""
    name, read = READERS[reader]
    make_link(folder / name)
    assert read()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda _, monkeypatch: become_another(monkeypatch), r"another user \(uid \d+\) owns it"),
        (lambda file, _: file.chmod(0o666), r"other users may write to it \(mode 666\)"),
        (lambda file, _: (file.unlink(), file.mkdir()), "it is not a file"),
    ],
)
def test_the_error_says_why_a_file_is_not_trusted(folder, monkeypatch, spoil, fault):
    """So that its user can mend it."""
    spoil(folder / "tidemill.toml", monkeypatch)
    with pytest.raises(SettingsError, match=rf"^tidemill\.toml: {fault}; if you trust it"):
        load()


@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "is_used"), [(0o755, 0o644, True), (0o777, 0o644, False), (0o755, 0o666, False)]
)
def test_root_trusts_the_owner_of_the_folder(folder, monkeypatch, folder_mode, file_mode, is_used):
    """In a container a checkout often belongs to another user. Root still uses no `run.json` of that user."""
    folder.chmod(folder_mode)
    (folder / "tidemill.toml").chmod(file_mode)
    become_another(monkeypatch)
    monkeypatch.setattr(ownership, "ROOT", 54_321)
    for read in (load, lambda: catalog._tables(None)):
        if is_used:
            assert read()
            continue
        with pytest.raises((SettingsError, PermissionError)):
            read()
    with pytest.raises(UsageError, match="no service is running"):
        target("a-key")


@pytest.mark.parametrize("variable", [False, True])
def test_the_key_in_a_named_folder_is_used_anyway(folder, variable):
    """The user chose whose service it is; an address still counts only if no other user could have written it."""
    data = folder / ".tidemill"
    environ = {"TIDEMILL_DATA": str(data)} if variable else {}

    def found():
        return find(base_url=None, api_key=None, data=None if variable else data, environ=environ)

    (data / "api_key").chmod(0o666)
    assert found().api_key == "local"
    (data / "run.json").chmod(0o666)
    with pytest.raises(UsageError, match="no service is running"):
        found()


def test_a_named_kafka_needs_no_found_file(folder, monkeypatch, capsys):
    """`produce --kafka` ignores one that is not trusted; one that is wrong ends the command."""
    monkeypatch.setenv("TIDEMILL_KAFKA", "kafka:9092")
    monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY", '{"protocol": "SSL"}')
    (folder / "tidemill.toml").chmod(0o666)
    found = run._kafka("other:9092", None)
    assert (found.servers, found.security.protocol) == ("other:9092", "SSL")
    assert "ignoring tidemill.toml: other users may write to it" in capsys.readouterr().err
    (folder / "tidemill.toml").chmod(0o600)
    (folder / "tidemill.toml").write_text("prot = 1\n")
    with pytest.raises(typer.Exit):
        run._kafka("other:9092", None)


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
