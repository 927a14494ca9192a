"""Every reader of secrets: what editors, shells and mounted Secrets add is no part of a secret."""

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.backend import Backend

from tidemill.api.access import openid, provider
from tidemill.client.errors import UsageError
from tidemill.client.target import find
from tidemill.configuration import signing_keys
from tidemill.configuration.buckets import Bucket
from tidemill.configuration.misconfigured import faults
from tidemill.configuration.projects import OpenId
from tidemill.configuration.security import Security
from tidemill.configuration.servers import Server
from tidemill.configuration.settings import Settings, SettingsError, load
from tidemill.local.embedded import users
from tidemill.processors.backends.server_settings import Target
from tidemill.runtime import run_file, server_probe
from tidemill.schemas.log.signing import Signer
from tidemill.sealing.key_manager import wrapper
from tidemill.sealing.wrapping import new_key_text

WORD = "a-secret_of+40/characters=xQ7"
SAME = [WORD, f"{WORD}\n", f"{WORD}\r\n", f"\ufeff{WORD}", f" {WORD}\t", f"\ufeff {WORD} \r\n\r\n"]
NO_KEY = [
    ("two words", "has a space or a character that is not ASCII"),
    ("clé", "has a space or a character that is not ASCII"),
    ("日本", "has a space or a character that is not ASCII"),
    ("one\ntwo", "has a line break or another invisible character"),
    ("one\u200btwo", "has a line break or another invisible character"),
    ("\udcff", "has a line break or another invisible character"),
    (" \n", "is empty"),
    ("\ufeff", "is empty"),
]


def server(url="http://a/v1"):
    return Server(url=url, api_key_env="A_KEY")


@pytest.mark.parametrize("given", SAME)
def test_a_key_is_sent_without_what_surrounds_it(given, monkeypatch):
    """To a server by processors and by the probe, and to the service by commands."""
    monkeypatch.setenv("A_KEY", given)
    with Backend() as backend:
        backend.key = WORD
        one = server(backend.url)
        assert one.lack is None
        assert Target(one).headers["authorization"] == f"Bearer {WORD}"
        assert isinstance(asyncio.run(server_probe.models(one)), list)
        for option, environ in ((given, {}), (None, {"TIDEMILL_API_KEY": given})):
            found = find(base_url=backend.url, api_key=option, data=None, environ=environ)
            assert found.api_key == WORD


@pytest.mark.parametrize(("given", "said"), NO_KEY)
def test_a_text_that_cannot_be_a_key_is_not_sent(given, said, monkeypatch):
    """The fault names the variable and does not quote it, for every reader of the fault."""
    monkeypatch.setenv("A_KEY", given)
    assert server().lack.startswith(f"the variable A_KEY {said}")
    assert "authorization" not in Target(server()).headers
    found = asyncio.run(server_probe.models(server()))
    assert found == server_probe.NoModels(server().lack)
    with pytest.raises(UsageError, match=f"^the API key {said}.*TIDEMILL_API_KEY") as refused:
        find(base_url="http://a/v1", api_key=given, data=None, environ={})
    assert given.strip("\ufeff \n") == "" or given not in f"{server().lack}{refused.value}"


def test_a_process_without_the_key_may_ask_the_server(monkeypatch):
    """Only processors have it, so its absence is a fault of theirs alone."""
    monkeypatch.delenv("A_KEY", raising=False)
    assert server().lack == "the variable A_KEY is not set"
    assert server().fault is None


SASL = {"protocol": "SASL_PLAINTEXT", "username": "u"}
BUCKET = {"access_key_id": "a", "projects": {"default": {}}}
OPENID = {"issuer": "https://a", "client_id": "tidemill", "grants": [{"value": "all"}]}
SIGNING, WRAPPING = Signer.made().text, new_key_text()


def client_secret(file: Path):
    asked = provider.Provider(OpenId(**OPENID, client_secret_file=file), lambda: 0.0)
    return asyncio.run(asked._secret())


def api_key(text: str, monkeypatch):
    monkeypatch.setenv("TIDEMILL_API_KEY", text)
    return load(Path("/dev/null")).api_key.get_secret_value()


def signing_key(text: str, monkeypatch):
    monkeypatch.setenv("TIDEMILL_SIGNING_KEY", text)
    return signing_keys.signer(load(Path("/dev/null"))).text


FILES = {
    "password_file": (WORD, lambda file: Security(**SASL, password_file=file).password),
    "embedded user": (WORD, lambda file: run_file.security(file.parent, "api").password),
    "embedded user's own": (WORD, lambda file: users.password(file.parent, "api")),
    "secret_access_key_file": (WORD, lambda file: Bucket(**BUCKET, secret_access_key_file=file).secret),
    "client_secret_file": (WORD, client_secret),
    "signing_key_file": (SIGNING, lambda file: signing_keys.signer(Settings(signing_key_file=file)).text),
    "encryption_key_file": (WRAPPING, lambda file: wrapper(Settings(encryption_key_file=file)) and WRAPPING),
}
"""A secret of each kind, and what reads it from a file."""
VARIABLES = {
    "api_key_env": (WORD, lambda _: Server(url="http://a/v1", api_key_env="A_SECRET").api_key),
    "password_env": (WORD, lambda _: Security(**SASL, password_env="A_SECRET").password),
    "secret_access_key_env": (WORD, lambda _: Bucket(**BUCKET, secret_access_key_env="A_SECRET").secret),
}
SETTINGS = {"api_key": (WORD, api_key), "signing_key": (SIGNING, signing_key)}
ADDED = ["{}", "{}\n", "{}\r\n", "\ufeff{}", " {}\t", "\ufeff {} \r\n\r\n"]


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("kind", [*FILES, *VARIABLES, *SETTINGS])
def test_each_reader_leaves_out_what_surrounds_a_secret(kind, added, tmp_path, monkeypatch):
    """Line ends, spaces and a byte order mark, in a file and in a variable."""
    if kind in FILES:
        secret, read = FILES[kind]
        file = tmp_path / "tidemill-api"
        file.write_bytes(added.format(secret).encode())
        assert read(file) == secret
    elif kind in VARIABLES:
        secret, read = VARIABLES[kind]
        monkeypatch.setenv("A_SECRET", added.format(secret))
        assert read(None) == secret
    else:
        secret, read = SETTINGS[kind]
        assert read(added.format(secret), monkeypatch) == secret


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfeh\0u\0s\0h\0", "is not text in UTF-8"),
        (b"hush\nhush", "has a line break|each line must be"),
        (b"", "empty|each line must be"),
        (b"\xef\xbb\xbf\n", "empty|each line must be"),
        (None, "cannot be read: (Is a directory|No such file)|no such file"),
        (b"h" * 70_000, "has more than 65536 bytes"),
    ],
    ids=["utf-16", "lines", "empty", "mark", "folder", "long"],
)
@pytest.mark.parametrize("kind", FILES)
def test_each_reader_names_a_file_that_has_no_secret(kind, content, said, tmp_path):
    """With an error that its caller expects, and without a word of the content."""
    file = tmp_path / "tidemill-api"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises((OSError, ValueError, SettingsError, openid.Refused), match=said) as refused:
        FILES[kind][1](file)
    assert not isinstance(refused.value, UnicodeError)
    assert str(file) in str(refused.value)
    assert "hush" not in str(refused.value).partition("input_value")[0]


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("given", ["one\ntwo", " \n"])
def test_each_reader_names_a_variable_that_has_no_secret(kind, given, monkeypatch):
    """It is a lack of the server, or an error that its caller expects."""
    monkeypatch.setenv("A_SECRET", given)
    if kind == "api_key_env":
        assert "A_SECRET" in Server(url="http://a/v1", api_key_env="A_SECRET").lack
    else:
        with pytest.raises((OSError, ValueError), match="the variable A_SECRET"):
            VARIABLES[kind][1](None)


NO_NAMES = [
    "sk-live-51Habcdefghijklmnop", "$KEY", "${KEY}", "A B", "1KEY", "KÉY", "A\n", "",
    f"hf_{'aB3dE' * 7}", f"sk_live_{'4eC39HqLyjWDarjtT1zd7dc'}x", "d41d8cd98f00b204e9800998ecf8427e",
]  # fmt: skip


@pytest.mark.parametrize("given", NO_NAMES)
@pytest.mark.parametrize(
    ("setting", "table"),
    [("password_env", "kafka_security"), ("secret_access_key_env", "buckets"), ("api_key_env", "servers")],
)
def test_a_secret_in_place_of_its_variable_is_refused(setting, table, given):
    """And not quoted: the name is shown in warnings, and written to the catalog."""
    entry = {
        "kafka_security": {**SASL, setting: given},
        "buckets": {"a": {**BUCKET, setting: given}},
        "servers": {"a": {"url": "http://a/v1", setting: given}},
    }[table]
    with pytest.raises(ValidationError) as refused:
        Settings(**{table: entry})
    (said,) = faults(refused.value)
    assert said.startswith(table)
    assert "the name of" in said or "control character" in said
    assert not given or given not in said


@pytest.mark.parametrize(
    "given",
    [
        "KEY",
        "_KEY",
        "TIDEMILL_KEY_GPU_1",
        "vllm_key",
        "KEY_OF_" + "LONG_NAMES_2_" * 9,
        "QWEN25CODER32BINSTRUCT_KEY",
    ],
)
def test_names_of_variables_are_accepted(given):
    """In the usual forms, of any length."""
    assert Server(url="http://a/v1", api_key_env=given).lack == f"the variable {given} is not set"
