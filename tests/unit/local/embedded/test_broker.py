"""The embedded broker: its users, command line and configuration. Nothing is started."""

import errno
import os
from pathlib import Path

import pytest

from tidemill.local.embedded import jars, kraft, users
from tidemill.local.embedded.broker import Broker, BrokerError
from tidemill.schemas.log import acls

PORTS = kraft.Ports(clients=1, controller=2)
NAMES = ("Größe", "a,b c", "100%d", 'x="y"', "<&>", "${sys:user.home}", "back\\slash")


@pytest.fixture
def made(tmp_path):
    """A broker whose passwords are made; nothing is started."""
    broker = Broker(tmp_path, cache=tmp_path / "cache")
    broker.folder.mkdir()
    users.make(broker.users)
    broker._ports = PORTS
    return broker


def test_every_user_has_its_own_password(made):
    """Created once, readable by the owner only."""
    before = {file.name: file.read_text() for file in made.users.iterdir()}
    assert set(before) == {acls.user(role) for role in (acls.ADMIN, *acls.ROLES)}
    assert len(set(before.values())) == len(before)
    users.make(made.users)
    assert {file.name: file.read_text() for file in made.users.iterdir()} == before
    users.write_client_files(made.users, made.bootstrap)
    assert made.users.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in made.users.iterdir()} == {0o600}


def test_a_crash_leaves_all_passwords_or_none(made, monkeypatch):
    """With half of them the other users could never connect."""
    made.users.rename(made.users.with_name("away"))
    monkeypatch.setattr(users.secrets, "token_urlsafe", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        users.make(made.users)
    assert not made.users.exists()
    monkeypatch.undo()
    users.make(made.users)
    assert len(list(made.users.iterdir())) == len(users.ROLES)


def test_no_password_is_in_a_command_line(made):
    """Every user of the machine sees command lines."""
    made._java = ["java", "-cp", "a.jar"]
    words = " ".join(made.command())
    arguments = made._format_arguments("format.properties")
    for role in users.ROLES:
        assert users.password(made.users, role) not in words
        assert any(users.password(made.users, role) in argument for argument in arguments)
    assert (made.folder / "server.properties").stat().st_mode & 0o777 == 0o600


def test_both_listeners_require_a_password(made):
    """Without an ACL a user may do nothing."""
    made._java = ["java", "-cp", "a.jar"]
    made.command()
    listed = dict(line.split("=", 1) for line in (made.folder / "server.properties").read_text().splitlines())
    protocols = dict(pair.split(":") for pair in listed["listener.security.protocol.map"].split(","))
    listening = {address.split("://")[0] for address in listed["listeners"].split(",")}
    assert {protocols[name] for name in listening} == {"SASL_PLAINTEXT"}
    assert listed["authorizer.class.name"].endswith("StandardAuthorizer")
    assert listed["allow.everyone.if.no.acl.found"] == "false"
    assert listed["super.users"] == "User:tidemill-admin"


@pytest.mark.parametrize("name", NAMES)
def test_no_path_is_in_a_configuration(tmp_path, name):
    """Each format would need another way to escape it."""
    broker = Broker(tmp_path / name, cache=tmp_path / "cache")
    broker.folder.mkdir(parents=True)
    users.make(broker.users)
    broker._ports, broker._java = PORTS, ["java", "-cp", "a.jar"]
    words = broker.command()
    for text in (*words, (broker.folder / "server.properties").read_text(), kraft.log4j2("../logs/kafka.log")):
        assert name not in text


async def test_a_cache_folder_with_a_colon_is_refused(tmp_path):
    """A Java class path separates files with colons."""
    with pytest.raises(BrokerError, match=r"TIDEMILL_CACHE: the path .* contains a colon; choose another"):
        await Broker(tmp_path, cache=tmp_path / "a:b").prepare()


async def test_a_cache_on_a_read_only_disk_needs_no_folder_of_start_caches(tmp_path, monkeypatch):
    """The jars are enough."""
    (cache := tmp_path / "cache").mkdir()
    mkdir = Path.mkdir

    def refuse(self, *args, **more):
        if self.name == "aot":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(jars, "pinned", lambda: ())
    broker = Broker(tmp_path / "data", cache=cache)
    await broker.prepare_java()
    assert broker._java
    assert broker._aot_options() == []


def test_a_start_cache_that_others_could_write_is_not_used(made, tmp_path):
    """Java executes it."""
    made._aot = tmp_path / "kafka.aot"
    made._aot.write_bytes(b"")
    assert any("AOTCache" in option for option in made._aot_options())
    made._aot.chmod(0o666)
    assert not any("AOTCache=" in option for option in made._aot_options())


def test_a_recording_may_outlast_a_stop(made, tmp_path):
    """Only once Kafka itself has stopped, and only if there is something to record."""
    (clean := made.folder / "log").mkdir()
    made._aot, made._java = tmp_path / "kafka.aot", ["java", "-cp", "a.jar"]
    made.command()
    assert (made.last_work(), made.has_recorded) == (None, False)
    (clean / ".kafka_cleanshutdown").touch()
    assert "start cache" in made.last_work()
    made._training.touch()
    assert made.has_recorded
    made._aot.write_bytes(b"")
    made._training = None
    made.command()
    assert (made.last_work(), made.has_recorded) == (None, False)


def test_java_gets_no_keys(made, monkeypatch):
    """Neither API keys nor keys of backends."""
    monkeypatch.setenv("TIDEMILL_API_KEY", "sk-of-the-api")
    monkeypatch.setenv("VLLM_KEY", "sk-of-a-server")
    assert not {"sk-of-the-api", "sk-of-a-server"} & set(made.environ.values())


def test_java_gets_the_library_that_meddles(made, monkeypatch):
    """Fault runs step the broker's clock with it, as those of the stages."""
    monkeypatch.setenv("LD_PRELOAD", "meddle.so")
    assert made.environ["LD_PRELOAD"] == "meddle.so"
