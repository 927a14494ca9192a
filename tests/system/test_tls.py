"""The API with TLS, as its clients meet it: handshakes, also those that never end, and a renewed certificate."""

import asyncio
import http.client
import os
import ssl
import subprocess
import sys

import pytest
import trustme
from support import raw
from support.api import KEY, Api
from support.api_use import MODELS
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics

pytestmark = pytest.mark.kafka

FILES_MAX = 512
SDK = """
import openai, sys
with openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0) as client:
    print(*(model.id for model in client.models.list()), sep='\\n')
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An authority, and certificates that it has signed."""
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder):
    """Signs for this machine."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return authority


@pytest.fixture(scope="module")
def api(kafka, folder, authority):
    """An api process with TLS and few files."""
    assert authority
    asyncio.run(ensure_topics(Settings(), kafka))
    with Api(
        folder / "api",
        kafka,
        files_max=FILES_MAX,
        models=MODELS,
        tls_cert_file=folder / "server.pem",
        connections={"head_seconds_max": 1},
    ) as api:
        yield api


@pytest.fixture
def trusting(authority):
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def get(api, context, path="/livez", **headers):
    """The status and the headers of an answer, and the server's certificate."""
    asking = http.client.HTTPSConnection("127.0.0.1", api.settings.port, timeout=WAIT_SECONDS_MAX, context=context)
    try:
        asking.request("GET", path, headers=headers)
        answer = asking.getresponse()
        return answer.status, answer.headers, asking.sock.getpeercert(binary_form=True)
    finally:
        asking.close()


def test_clients_trust_their_own_authority(api, folder):
    """The SDK and our commands, by OpenSSL's variable."""
    environ = {**os.environ, "TIDEMILL_BASE_URL": api.url, "TIDEMILL_API_KEY": KEY}
    trusting = {**environ, "SSL_CERT_FILE": str(folder / "ca.pem")}
    ours = [sys.executable, "-m", "tidemill", "list"]
    assert (
        subprocess.run(ours, env=trusting, check=False, capture_output=True, timeout=WAIT_SECONDS_MAX).returncode
        == 0
    )
    strange = subprocess.run(
        ours, env=environ, check=False, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX
    )
    assert (strange.returncode, "is not trusted; set SSL_CERT_FILE" in strange.stderr) == (7, True)
    sdk = [sys.executable, "-c", SDK, api.url, KEY]
    said = subprocess.run(
        sdk, env=trusting, check=True, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX
    ).stdout
    # Other modules may have added models to the broker that all share.
    assert set(MODELS) <= set(said.splitlines())


def test_only_modern_tls_is_accepted(api, trusting):
    """TLS 1.2 and 1.3; neither 1.1 nor plain HTTP; every answer has HSTS."""
    status, headers, _ = get(api, trusting, "/v1/models")
    assert (status, headers["strict-transport-security"]) == (401, "max-age=31536000")
    assert headers["cache-control"] == "no-store"
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    assert get(api, trusting)[0] == 200
    trusting.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trusting.minimum_version = trusting.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        get(api, trusting)
    address = ("127.0.0.1", api.settings.port)
    assert b"200" not in raw.asked(address, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")


def test_endless_handshakes_leave_room_for_others(api, trusting):
    """More of them than connections, renewed as they are closed."""
    address = ("127.0.0.1", api.settings.port)
    for start in (b"", b"\x16\x03\x01\x02\x00"):
        with raw.silent(address, FILES_MAX, start) as opened:
            assert get(api, trusting)[0] == 200
            assert all(raw.answered(one)[:1] in {b"", b"\x15"} for one in opened)
    assert api.process.poll() is None


def test_a_renewed_certificate_is_used(api, folder, authority, trusting):
    """Without a restart; an unreadable one changes nothing, and is logged."""
    first = get(api, trusting)[2]
    (folder / "server.pem").write_text("nonsense")
    wait_until(lambda: "the old one stays" in api.log, "a warning")
    assert get(api, trusting)[2] == first
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    wait_until(lambda: get(api, trusting)[2] != first, "the new certificate")


def test_other_host_names_are_refused(api, trusting):
    """On a loopback address; health checks work with any name."""
    for host, status in (
        ("localhost:1", 401),
        ("LOCALHOST", 401),
        ("a.localhost", 401),
        ("[::1]:8080", 401),
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ):
        assert (host, get(api, trusting, "/v1/models", Host=host)[0]) == (host, status)
    assert get(api, trusting, "/livez", Host="evil.example")[0] == 200
    assert get(api, trusting, "/dashboard/", Host="evil.example")[0] == 421
