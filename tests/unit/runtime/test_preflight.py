"""`up` and `doctor` check the settings against the environment before a start."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.settings import Settings, SettingsError
from tidemill.runtime import preflight
from tidemill.runtime.listening import client_host, listen

NOT_OURS = "192.0.2.1"
"""An address for documentation (RFC 5737): no machine has it."""
FILE = """
[models.m]
backends = [{ url = "http://127.0.0.1:1/v1", api_key_env = "VLLM_KEY" }]
"""


def test_the_page_of_settings_names_the_other_variables():
    """Those that users set; Tidemill itself sets the one of its start."""
    page = (Path(__file__).parents[3] / "docs" / "reference" / "settings.md").read_text("utf-8")
    named = {*preflight.OTHER_VARIABLES, preflight.KEY_PREFIX} - {"TIDEMILL_NOTIFY_FD"}
    assert [name for name in named if f"`{name}`" not in page] == []


@pytest.fixture
def command(tmp_path):
    """Runs a command in a folder with such a file, on a terminal that knows nothing but ASCII."""
    (tmp_path / "Größe").mkdir()
    (tmp_path / "Größe" / "tidemill.toml").write_text(FILE)

    def run(name, **variables):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tidemill", name],
            capture_output=True, check=False, text=True, timeout=WAIT_SECONDS_MAX, cwd=tmp_path / "Größe",
            env={**kept, "PYTHONIOENCODING": "ascii", "TIDEMILL_DATA": str(tmp_path / "Größe"), **variables},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def test_up_and_doctor_report_the_same_problems(command):
    """Each by its setting, with the fix; nothing starts, on any terminal."""
    variables = {"TIDEMILL_HOST": NOT_OURS, "TIDEMILL_PARTITONS": "3"}
    for name, code in (("up", 2), ("doctor", 1)):
        ended, said = command(name, **variables)
        assert ended == code, said
        assert "Traceback" not in said
        assert "server 127.0.0.1:1: the variable VLLM_KEY is not set, so lines" in said
        assert "set it where the processors run, or change the server" in said
        assert f"host: {NOT_OURS} is not an address of this machine" in said
        assert "TIDEMILL_PARTITONS: there is no such setting" in said
        assert "TIDEMILL_PARTITIONS is one" in said


def test_a_complete_environment_has_no_problem(monkeypatch):
    """A key that is set, an address that is free, and variables of other programs."""
    monkeypatch.setenv("TIDEMILL_PORTS", "key")
    settings = Settings(
        port=0, models={"m": {"backends": [{"url": "http://a/v1", "api_key_env": "TIDEMILL_PORTS"}]}}
    )
    given = {
        "TIDEMILL_PORTS": "key",
        "TIDEMILL_CACHE": "/c",
        "TIDEMILL_MODELS__M__PRICE": "{}",
        "tidemill_port": "81",
        "TIDEMILL_KEY_GPU": "key",
    }
    assert not [*preflight.lacking(settings.serving), *preflight.unknown(settings, given)]
    assert preflight.address_fault(settings) is None


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("LOG_LEVEL", "TIDEMILL_LOG__LEVEL is one"),
        ("LOG_LVL", "TIDEMILL_LOG__LEVEL is one"),
        ("LIMITS_FILES_MAX", "TIDEMILL_LIMITS__FILES_MAX is one"),
        ("KAFKA_SECURITY_PROTOCOL", "TIDEMILL_KAFKA_SECURITY__PROTOCOL is one"),
        (
            "KAFKA_SECURITY_PASSWORD",
            "TIDEMILL_KAFKA_SECURITY__PASSWORD_ENV or TIDEMILL_KAFKA_SECURITY__PASSWORD_FILE is one",
        ),
        ("OPENID_ISSUER", "TIDEMILL_OPENID__ISSUER is one"),
        ("ENCRYPT", "TIDEMILL_ENCRYPT_LOG is one"),
        ("ENCRYPT_LOGS", "TIDEMILL_ENCRYPT_LOG is one"),
        ("STORE_URL", "TIDEMILL_STORE is one"),
        ("KAFKA_BOOTSTRAP_SERVERS", "TIDEMILL_KAFKA is one"),
        ("BATCH_LIFE", "TIDEMILL_BATCH_LIFE_SECONDS is one"),
        ("TLS_CERT", "TIDEMILL_TLS_CERT_FILE is one"),
        ("DATA_DIR", "TIDEMILL_DATA is one"),
        ("GRACE", "TIDEMILL_GRACE_SECONDS is one"),
        ("PORT__X", "TIDEMILL_PORT is one"),
        ("CONFIGURATION", "remove it, or correct its name"),
        ("CATALOG", "remove it, or correct its name"),
        ("OF_MINE", "remove it, or correct its name"),
    ],
)
def test_each_unknown_variable_is_reported(name, fix):
    """The prefix is Tidemill's own; the settings that it may mean are named, in capitals or not."""
    for given in (f"TIDEMILL_{name}", f"tidemill_{name.lower()}"):
        (found,) = preflight.unknown(Settings(), {given: "x", "PATH": "/bin"})
        assert str(found) == f"{given}: there is no such setting, so it has no effect; {fix}"


def test_variables_for_services_of_kubernetes_are_no_settings(monkeypatch):
    """A pod with service links has them for each service of its namespace; they neither fail nor warn."""
    given = {}
    for service in ("TIDEMILL", "TIDEMILL_API", "TIDEMILL_HEALTH"):
        given |= {
            f"{service}_SERVICE_HOST": "10.0.0.1", f"{service}_SERVICE_PORT": "8080",
            f"{service}_SERVICE_PORT_HTTP": "8080", f"{service}_PORT": "tcp://10.0.0.1:8080",
            f"{service}_PORT_8080_TCP": "tcp://10.0.0.1:8080", f"{service}_PORT_8080_TCP_PROTO": "tcp",
            f"{service}_PORT_8080_TCP_PORT": "8080", f"{service}_PORT_8080_TCP_ADDR": "10.0.0.1",
        }  # fmt: skip
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    settings = Settings()
    assert (settings.port, settings.health_port) == (8080, 0)
    assert not [*preflight.unknown(settings, given)]


@pytest.mark.parametrize("stage", ["api", "ingest"])
def test_a_stage_logs_the_variables_that_it_ignores(command, stage):
    """At its start, before it needs anything."""
    _, said = command(stage, TIDEMILL_ENCRYPT="true", TIDEMILL_STORE_URL="s3://bucket/")
    assert "TIDEMILL_ENCRYPT: there is no such setting, so it has no effect; TIDEMILL_ENCRYPT_LOG is one" in said
    assert "TIDEMILL_STORE_URL: there is no such setting, so it has no effect; TIDEMILL_STORE is one" in said


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (NOT_OURS, f"host: {NOT_OURS} is not an address of this machine"),
        ("127.0.0.1:80", "host: 127.0.0.1:80 is neither an address nor a name"),
        ("http://localhost", "host: http://localhost is neither"),
        ("a" * 300, "is neither an address nor a name"),
        ("no-such-host.invalid", "host: no-such-host.invalid is neither"),
    ],
)
def test_an_invalid_address(host, said):
    """The error names its cause, which is not a port in use."""
    with pytest.raises(SettingsError, match=said):
        listen(host, 0)


def test_a_port_in_use_is_reported():
    """With the option for another port."""
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(SettingsError, match="is in use; choose another with --port"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps silent connections to itself")
def test_silent_connections_are_not_accepted():
    """One with data overtakes them, and they take no open file."""
    with listen("127.0.0.1", 0) as listening, contextlib.ExitStack() as stack:
        address = listening.getsockname()
        *_, speaking = (stack.enter_context(socket.create_connection(address)) for _ in range(100))
        speaking.sendall(b"G")
        listening.settimeout(WAIT_SECONDS_MAX)
        accepted, peer = listening.accept()
        stack.enter_context(accepted)
        assert peer == speaking.getsockname()
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "0:0:0:0:0:0:0:0", "localhost"])
def test_the_shown_address_answers(host):
    """Also if the server listens on all addresses."""
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with listen(host, 0) as listening:
        shown = client_host(host)
        assert (":" in host) == shown.startswith("[")
        socket.create_connection((shown.strip("[]"), listening.getsockname()[1]), timeout=WAIT_SECONDS_MAX).close()
