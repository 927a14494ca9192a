"""Which service is meant."""

import json
from pathlib import Path

import pytest

from tidemill.client.errors import UsageError
from tidemill.client.target import Target, find

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
def test_the_command_line_then_the_environment_then_the_local_one(
    data: Path, url: str | None, key: str | None, environ: dict[str, str], expected: tuple[str, str]
) -> None:
    """The nearer word counts."""
    environ = environ | {"TIDEMILL_DATA": str(data)}
    found = find(base_url=url, api_key=key, data=None, environ=environ)
    assert found == Target(base_url=expected[0], api_key=expected[1])


def test_a_named_folder_goes_before_the_environment(data: Path) -> None:
    """`--data` says which service is meant."""
    environ = {"TIDEMILL_BASE_URL": "http://b/v1", "TIDEMILL_API_KEY": "e"}
    found = find(base_url=None, api_key=None, data=data, environ=environ)
    assert found == Target(base_url=LOCAL, api_key="local")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080/v1", "localhost", "http://a", "http://a/", "http:///v1", "ftp://a/v1"]
)
def test_an_address_without_its_scheme_or_its_path_is_refused(url: str) -> None:
    """With the form that it has, and before a key goes there."""
    with pytest.raises(UsageError, match=f"{url.rstrip('/')} is not the address .* http://HOST:PORT/v1"):
        find(base_url=url, api_key="k", data=None, environ={})
    assert (
        find(base_url="https://a/tidemill/v1/", api_key="k", data=None, environ={}).base_url
        == "https://a/tidemill/v1"
    )


def test_the_local_key_is_shown_to_no_one_else(data: Path) -> None:
    """Another address asks for a key of its own; and a key is in no printed text."""
    with pytest.raises(UsageError, match="no API key for"):
        find(base_url="http://elsewhere/v1", api_key=None, data=data, environ={})
    assert "secret" not in repr(Target(base_url=LOCAL, api_key="secret"))


def test_nothing_runs(tmp_path: Path) -> None:
    """It is said what to do."""
    with pytest.raises(UsageError, match="tidemill up"):
        find(base_url=None, api_key=None, data=tmp_path, environ={})


def test_no_key_goes_to_an_address_that_another_user_may_have_written(data: Path) -> None:
    """A command in a folder where everybody may write does not believe what it finds there."""
    (data / "run.json").chmod(0o646)
    with pytest.raises(UsageError, match="no service is running"):
        find(base_url=None, api_key=None, data=None, environ={"TIDEMILL_DATA": str(data), "TIDEMILL_API_KEY": "e"})
