"""Which clients may use an api, and lists of settings in variables."""

import json

import pytest
from pydantic import ValidationError

from tidemill.api.http import hosts
from tidemill.configuration.misconfigured import faults
from tidemill.configuration.settings import Settings


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["https://a.example.com"], "allowed_hosts.0: https://a.example.com is not a name like app.example.com"),
        (["a", "a.example.com:8080"], "allowed_hosts.1: a.example.com:8080 is not a name"),
        (["::1"], "allowed_hosts.0: ::1 is not a name like app.example.com: no scheme, no port, and IPv6 in [ ]"),
        (["a,b"], "allowed_hosts.0: a,b is not"),
        (["a/"], "allowed_hosts.0: a/ is not"),
        (["é.example"], "allowed_hosts.0: é.example is not"),
        ([""], "allowed_hosts.0: "),
        ([], "allowed_hosts: List should have at least 1 item"),
    ],
)
def test_a_host_that_matches_nothing_is_refused(listed, said):
    """Otherwise the api answers every request with 421."""
    with pytest.raises(ValidationError) as refused:
        Settings(allowed_hosts=listed)
    (found,) = faults(refused.value)
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("listed", "answered", "refused"),
    [
        ("A.example.com", b"a.Example.com:8080", b"b.example.com"),
        ("*.example.com", b"a.example.com", b"example.com"),
        ("[::1]", b"[::1]:8080", b"1"),
        ("[FD00::a]", b"[fd00::A]", b"[fd00::b]"),
        ("10.0.0.*", b"10.0.0.7:80", b"10.0.1.7"),
        ("my_host", b"my_host", b"myhost"),
        ("*", b"[::1]", None),
    ],
)
def test_a_host_that_is_allowed_is_answered(listed, answered, refused):
    """With any port; an address of IPv6 is in brackets, as in the header."""
    is_allowed = hosts.check(Settings(allowed_hosts=[listed]).allowed_hosts, "0.0.0.0")
    assert is_allowed([(b"host", answered)])
    assert refused is None or not is_allowed([(b"host", refused)])


LISTS = {
    "ALLOWED_HOSTS": ("a.example.com", "[::1]"),
    "CORS_ORIGINS": ("https://a.example", "https://b.example"),
    "FORWARD_HEADERS": ("x-a", "x-b"),
    "WEBHOOK_ALLOW": ("10.1.0.0/16", "10.2.0.0/16"),
    "VERIFY_KEYS": ("one", "other"),
    "PROJECTS__P__FORWARD_HEADERS": ("x-a", "x-b"),
    "OPENID__SCOPES": ("openid", "email"),
    "MODELS__M__SERVERS": ("one", "other"),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("form", [json.dumps, ",".join, " , ".join])
def test_a_list_in_a_variable(name, form, monkeypatch):
    """Is JSON, or texts with commas between them: one rule for all lists."""
    listed = LISTS[name]
    for server in LISTS["MODELS__M__SERVERS"]:
        monkeypatch.setenv(f"TIDEMILL_SERVERS__{server}__URL", f"http://{server}/v1")
    if name.startswith("OPENID"):
        monkeypatch.setenv("TIDEMILL_OPENID__ISSUER", "https://a.example")
        monkeypatch.setenv("TIDEMILL_OPENID__CLIENT_ID", "tidemill")
        monkeypatch.setenv("TIDEMILL_OPENID__GRANTS", '[{"value": "all"}]')
    monkeypatch.setenv(f"TIDEMILL_{name}", form(listed))
    found = Settings()
    for part in name.lower().split("__"):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == listed
    monkeypatch.setenv(f"TIDEMILL_{name}", form(listed[:1]))
    assert Settings()


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("[::1]", ("[::1]",)), ("[::1], a.example", ("[::1]", "a.example")), ("10", ("10",)), ("true", ("true",)),
        ("null", None), ('["[::1]"]', ("[::1]",)),
    ],
)  # fmt: skip
def test_a_host_that_looks_like_json_in_a_variable(text, hosts, monkeypatch):
    """An address of IPv6 or a number is a name; `null` is none, like a variable that is not set."""
    monkeypatch.setenv("TIDEMILL_ALLOWED_HOSTS", text)
    assert Settings().allowed_hosts == hosts
