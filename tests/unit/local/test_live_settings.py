"""Changes of the settings file while `tidemill up` runs, with a Kafka that does not answer."""

import asyncio
from pathlib import Path

import pytest
from support.ports import free_port
from support.waiting import until

from tidemill.configuration.catalog import Entry, Fold
from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka.connection import LogUnavailable
from tidemill.local import live_settings
from tidemill.local.live_settings import LiveSettings

CLUSTER = Cluster(servers="127.0.0.1:1")


class Scripted(LiveSettings):
    """Applies nothing: each call raises the next error, if there is one."""

    def __init__(self, *args, errors, **more):
        super().__init__(*args, **more)
        self.ports = []
        self.errors = errors

    async def apply(self, settings, *_):
        """See `LiveSettings.apply`."""
        self.ports.append(settings.port)
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def said():
    """The lines for the operator."""
    return []


@pytest.fixture
async def followed(tmp_path, said, monkeypatch):
    """Makes settings whose file is followed; `write` changes it."""
    monkeypatch.setattr(live_settings, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(live_settings, "RETRY_SECONDS_MAX", 0.01)
    file = tmp_path / "tidemill.toml"
    file.write_text("port = 1\n")
    tasks = []

    def make(*errors):
        live = Scripted(file, say=said.append, errors=list(errors))
        live.write = file.write_text
        tasks.append(asyncio.create_task(live.follow(CLUSTER, {})))
        return live

    yield make
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_change_is_applied_once_kafka_answers(followed, said):
    """With one warning, and not again afterwards."""
    live = followed(LogUnavailable("no answer"), LogUnavailable("no answer"))
    live.write("port = 22\n")
    await until(lambda: len(live.ports) == 3, "the third attempt")
    live.write("port = 333\n")
    await until(lambda: len(live.ports) > 3, "the next change")
    assert live.ports == [22, 22, 22, 333]
    assert said[:1] == ["warning: not applied yet: no answer; trying again."]


async def test_changes_of_other_settings_are_named(followed, said):
    """Once, until others have changed, too; servers and models are applied."""
    live = followed()
    waiting = "warning: these changed settings take effect at the next start of `tidemill up`: "
    live.write("port = 1\n[servers.a]\nurl = 'http://127.0.0.1:9/v1'\n")
    await until(lambda: len(live.ports) == 1, "the servers")
    live.write("port = 22\n[projects.p.limits]\nfiles_max = 5\n")
    await until(lambda: said, "the first message")
    live.write("port = 333\n[projects.p.limits]\nfiles_max = 55\n")
    await until(lambda: len(live.ports) == 3, "a change of the same settings")
    live.write("port = 333\nwebhook_allow = ['10.0.0.0/8']\n")
    await until(lambda: len(said) == 2, "the second message")
    assert said == [f"{waiting}port, projects.", f"{waiting}port, webhook_allow."]


@pytest.mark.parametrize("content", ["port = 'x'\n", "port = \n"])
async def test_a_change_that_is_wrong_is_refused_once(followed, said, content):
    """The next one is applied."""
    live = followed(SettingsError("a contradiction"))
    live.write(content)
    await until(lambda: said, "the warning")
    live.write("port = 4444\n")
    await until(lambda: len(said) == 2, "the warning of the next one")
    live.write("port = 55555\n")
    await until(lambda: len(live.ports) == 2, "the last one")
    assert live.ports == [4444, 55555]
    assert all(line.startswith("warning: not applied: ") for line in said[:2])


async def test_the_wait_for_kafka_has_a_bound(said, monkeypatch):
    """The error says what was not done."""
    monkeypatch.setattr(live_settings, "APPLY_SECONDS_MAX", 0.2)
    live = LiveSettings(None, say=said.append)
    with pytest.raises(LogUnavailable, match=r"servers and models cannot be applied: Kafka does not answer"):
        await live.apply(Settings(), Cluster(servers=f"127.0.0.1:{free_port()}"), {})
    assert not said


ONE_MODEL = "[servers.a]\nurl = 'http://127.0.0.1:9/v1'\n[models.m]\nservers = ['a']\n"


@pytest.fixture
def default_file(tmp_path, monkeypatch):
    """The settings file of the current folder, with a model."""
    monkeypatch.setattr(live_settings, "LOOK_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    file = Path("tidemill.toml")
    file.write_text(ONE_MODEL)
    return file


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "is gone"),
        (lambda file: file.write_text(""), "has no models"),
        (lambda file: file.write_text("port = 2\n"), "has no models"),
    ],
)
async def test_a_file_that_is_away_or_empty_removes_nothing(default_file, said, damage, fault):
    """An editor, or a full disk, may leave it so; the next file is applied."""
    live, write = Scripted(None, say=said.append, errors=[]), default_file.write_text
    following = asyncio.create_task(live.follow(CLUSTER, {}))
    damage(default_file)
    await until(lambda: said, "the warning")
    assert said[0].startswith("warning: not applied: tidemill.toml ")
    assert fault in said[0]
    write(f"port = 33\n{ONE_MODEL}")
    await until(lambda: live.ports, "the next file")
    assert live.ports == [33]
    following.cancel()


class Growing(type(Path())):
    """A file that a program writes piece by piece: one before each look."""

    pieces = ()

    def stat(self, **options):
        """See `Path.stat`."""
        if self.pieces:
            with self.open("a") as file:
                file.write(self.pieces.pop(0))
        return super().stat(**options)


async def test_a_file_is_applied_once_it_is_whole(tmp_path, said, monkeypatch):
    """Although the first pieces are settings, too."""
    monkeypatch.setattr(live_settings, "LOOK_SECONDS", 0.01)
    file = Growing(tmp_path / "tidemill.toml")
    with file.open("w"):
        live = Scripted(file, say=said.append, errors=[])
    file.pieces = ["port = 1", "2", "3\n", ONE_MODEL]
    following = asyncio.create_task(live.follow(CLUSTER, {}))
    await until(lambda: live.ports, "the whole file")
    assert (live.ports, file.pieces) == ([123], [])
    following.cancel()


def test_what_is_removed_is_named():
    """Also if the file has demo models in place of its own; a long list ends with a count."""

    def contents(*keys):
        fold = Fold()
        for key in keys:
            fold.put(key, Entry(settings={"url": "http://a/v1"}, author="f", at=1))
        return fold.contents()

    before = contents("server/a", "server/b", "model/m")
    assert live_settings.removals(before, contents("server/a", "server/c")) == "; removed model/m, server/b"
    assert live_settings.removals(before, before) == ""
    many = contents(*(f"server/{number}" for number in range(1000)))
    assert live_settings.removals(many, before).endswith("server/115, 980 more")
