"""Which service and key a command uses."""

import json
import os
from pathlib import Path

import pytest

from tidemill.client.errors import UsageError
from tidemill.client.target import Target, find
from tidemill.storage.locked_directory import lock

LOCAL = "http://127.0.0.1:8080/v1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a local service that runs."""
    (tmp_path / "run.json").write_text(json.dumps({"api": LOCAL, "kafka": "127.0.0.1:1", "processes": {}}))
    (tmp_path / "run.json").chmod(0o600)
    (tmp_path / "api_key").write_text("local\n")
    return tmp_path


@pytest.mark.parametrize(
    ("url", "key", "environ", "expected"),
    [
        (None, None, {}, (LOCAL, "local")),
        (None, "k", {}, (LOCAL, "k")),
        ("http://a/v1/", "k", {"TIDEMILL_BASE_URL": "http://b/v1"}, ("http://a/v1", "k")),
        (None, None, {"TIDEMILL_BASE_URL": "http://b/v1", "TIDEMILL_API_KEY": "e"}, ("http://b/v1", "e")),
        (None, None, {"TIDEMILL_API_KEY": "e"}, (LOCAL, "e")),
    ],
)
def test_options_then_environment_then_local_service(
    data: Path, url: str | None, key: str | None, environ: dict[str, str], expected: tuple[str, str]
) -> None:
    """For the address and for the key."""
    environ = environ | {"TIDEMILL_DATA": str(data)}
    found = find(base_url=url, api_key=key, data=None, environ=environ)
    assert found == Target(base_url=expected[0], api_key=expected[1])


def test_a_named_data_folder_takes_precedence_over_the_environment(data: Path) -> None:
    """`--data` chooses its service."""
    environ = {"TIDEMILL_BASE_URL": "http://b/v1", "TIDEMILL_API_KEY": "e"}
    found = find(base_url=None, api_key=None, data=data, environ=environ)
    assert found == Target(base_url=LOCAL, api_key="local")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080/v1", "localhost", "http://a", "http://a/", "http:///v1", "ftp://a/v1"]
)
def test_an_address_without_scheme_or_path_is_refused(url: str) -> None:
    """The error shows the form of an address; no key was sent."""
    with pytest.raises(UsageError, match=f"{url.rstrip('/')} is not the address .* http://HOST:PORT/v1"):
        find(base_url=url, api_key="k", data=None, environ={})
    assert (
        find(base_url="https://a/tidemill/v1/", api_key="k", data=None, environ={}).base_url
        == "https://a/tidemill/v1"
    )


def test_the_local_key_is_not_sent_to_another_address(data: Path) -> None:
    """And printing a target shows no key."""
    with pytest.raises(UsageError, match="no API key for"):
        find(base_url="http://elsewhere/v1", api_key=None, data=data, environ={})
    assert "secret" not in repr(Target(base_url=LOCAL, api_key="secret"))


def test_without_a_service_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Start one, or name one."""
    with pytest.raises(UsageError, match="tidemill up"):
        find(base_url=None, api_key=None, data=tmp_path, environ={})


def test_a_service_that_is_starting_is_named(tmp_path: Path) -> None:
    """`tidemill up` has locked the folder; another one would be refused."""
    descriptor = lock(tmp_path)
    with pytest.raises(UsageError, match=rf"is starting or stopping \(process {os.getpid()}\)"):
        find(base_url=None, api_key=None, data=tmp_path, environ={})
    os.close(descriptor)
    (tmp_path / "lock").write_bytes(b"unreadable")
    with pytest.raises(UsageError, match="no service is running"):
        find(base_url=None, api_key=None, data=tmp_path, environ={})


def test_a_run_json_that_others_could_write_is_ignored(data: Path) -> None:
    """It could send the key to another address."""
    (data / "run.json").chmod(0o646)
    with pytest.raises(UsageError, match="no service is running"):
        find(base_url=None, api_key=None, data=None, environ={"TIDEMILL_DATA": str(data), "TIDEMILL_API_KEY": "e"})


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "is empty"), (b"a\nb", "has a line break"), (b"\xff", "is not text in UTF-8")]
)
def test_a_damaged_key_of_the_service_is_named(data: Path, content: bytes, fault: str) -> None:
    """Its file and its fault, unless another key goes before it or no file is there."""
    (data / "api_key").write_bytes(content)
    with pytest.raises(UsageError, match=f"{data}/api_key {fault}.*; restore it"):
        find(base_url=None, api_key=None, data=data, environ={"TIDEMILL_API_KEY": "e"})
    assert find(base_url=None, api_key="k", data=data, environ={}).api_key == "k"
    named = {"TIDEMILL_DATA": str(data), "TIDEMILL_API_KEY": "e"}
    assert find(base_url=None, api_key=None, data=None, environ=named).api_key == "e"
    (data / "api_key").unlink()
    with pytest.raises(UsageError, match="no API key for"):
        find(base_url=None, api_key=None, data=data, environ={})
