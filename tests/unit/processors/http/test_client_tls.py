"""TLS contexts of the client: one for each trust, made again when a file is renewed."""

import asyncio
import os
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support.waiting import WAIT_SECONDS_MAX

from tidemill.client.errors import Unreachable
from tidemill.client.http.connection import Connection
from tidemill.configuration import security
from tidemill.configuration.security import load_certificate
from tidemill.configuration.servers import Server
from tidemill.processors.failures import FailureKind
from tidemill.processors.http.client import HttpUpstream, Trust
from tidemill.runtime import server_probe
from tidemill.runtime.server_probe import NoModels


def write(folder: Path) -> Trust:
    """Write an authority and a client's certificate of it."""
    authority = trustme.CA()
    ours = authority.issue_cert("client.example")
    trust = Trust(authorities=(folder / "ca.pem",), client=(folder / "client.pem", folder / "client.key"))
    authority.cert_pem.write_to_path(trust.authorities[0])
    ours.cert_chain_pems[0].write_to_path(trust.client[0])
    ours.private_key_pem.write_to_path(trust.client[1])
    return trust


def test_renewed_files_count_for_the_next_connection(tmp_path):
    """Without a restart; files that stay are read once."""
    client, trust = HttpUpstream(), write(tmp_path)
    first = client._context(trust)
    assert client._context(trust) is first
    known = {cert["serialNumber"] for cert in first.get_ca_certs()}
    assert write(tmp_path) == trust
    for file in tmp_path.iterdir():
        os.utime(file, (2_000_000_000, 2_000_000_000))
    renewed = client._context(trust)
    assert {cert["serialNumber"] for cert in renewed.get_ca_certs()} != known
    assert client._context(trust) is renewed


def test_a_trust_that_no_server_has_is_forgotten(tmp_path):
    """The settings may change any number of times."""
    client, trust = HttpUpstream(), write(tmp_path)
    client._context(trust)
    client.follow({("gpu", 443): trust}, [("gpu", 443)])
    assert list(client._tls) == [trust]
    client.follow({}, [])
    assert not client._tls


@pytest.mark.parametrize("is_one_file", [True, False])
def test_an_encrypted_key_is_an_error(tmp_path, is_one_file):
    """OpenSSL would ask for its password on the terminal, and wait; the process has one here."""
    _, key = write(tmp_path).client
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    cert = tmp_path / "client.pem"
    if is_one_file:
        cert.write_bytes(cert.read_bytes() + key.read_bytes())
    key = None if is_one_file else key
    with pytest.raises(OSError, match="encrypted key"):
        load_certificate(ssl.create_default_context(), cert, key)
    assert "has an encrypted key" in server(client_cert_file=cert, client_key_file=key).lack


def server(**files: Path | None) -> Server:
    """The settings of a server with these files."""
    found = {name: str(file) for name, file in files.items() if file is not None}
    return Server.model_validate({"url": "https://gpu.example/v1", **found})


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    """Else the calls would fail as if no server were there."""
    (cert, key), (ca,) = write(tmp_path).client, write(tmp_path).authorities
    good = {"ca_file": ca, "client_cert_file": cert, "client_key_file": key}
    assert server(**good).lack is None
    (wrong := tmp_path / "wrong").write_text("no PEM")
    trustme.CA().issue_cert("other.example").private_key_pem.write_to_path(other := tmp_path / "other.key")
    for setting, file in (("ca_file", wrong), ("client_cert_file", wrong), ("client_key_file", other)):
        lack = server(**{**good, setting: file}).lack
        assert lack.startswith("there is no certificate")
        assert str(file) in lack


def test_files_are_parsed_once_until_they_are_renewed(tmp_path, monkeypatch):
    """Processors ask for all servers every few seconds, on their event loop."""
    parsed = []

    def load(*given):
        parsed.append(given)
        load_certificate(*given)

    monkeypatch.setattr(security, "load_certificate", load)
    cert, key = write(tmp_path).client
    for _ in range(2):
        assert server().lack is None
        assert server(client_cert_file=cert, client_key_file=key).lack is None
    assert len(parsed) == 1
    key.write_text("no PEM")
    assert server(client_cert_file=cert, client_key_file=key).lack is not None


async def test_a_renewed_key_that_is_encrypted_is_logged(tmp_path, caplog):
    """The call itself says only that there is no connection."""
    trust = write(tmp_path)
    client = HttpUpstream({("127.0.0.1", 9): trust})
    assert await client.get("https://127.0.0.1:9/v1/models", {}, 5, 100) is FailureKind.CONNECT
    assert not caplog.records
    trust.client[1].write_text("no PEM")
    assert await client.get("https://127.0.0.1:9/v1/models", {}, 5, 100) is FailureKind.CONNECT
    assert "a TLS file of their server cannot be used" in caplog.text


def test_certificates_are_loaded_in_one_place():
    """Elsewhere an encrypted key would block the process."""
    root = Path(__file__).parents[4]
    found = subprocess.run(
        ["git", "grep", "-l", "load_cert_chain(", "--", "*.py", ":!tests"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == ["src/tidemill/configuration/security.py"]


@pytest.mark.parametrize(
    ("name", "days", "why"),
    [
        ("127.0.0.1", -1, "its certificate is not valid (certificate has expired)"),
        ("other.example", 1, "its certificate is for another name"),
        ("127.0.0.1", 1, None),
    ],
)
async def test_the_fault_of_a_certificate_is_named(tmp_path, name, days, why):
    """By calls, by the check of a server, and by the commands: only an unknown authority asks for another file."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=datetime.now(UTC) + timedelta(days=days)).configure_cert(context)
    ca, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(ca)
    trustme.CA().cert_pem.write_to_path(other)
    trusted = ca if why else other
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        url = f"https://127.0.0.1:{port}/v1"
        client = HttpUpstream({("127.0.0.1", port): Trust((trusted,))})
        assert await client.post(url, {}, b"", WAIT_SECONDS_MAX) is FailureKind.CONNECT
        assert client.fault(url, {}) == (why or "its certificate is not trusted")
        found = await server_probe.models(Server(url=url, ca_file=trusted))
        assert found == NoModels(why or "its certificate is not trusted; set ca_file to the CA that signed it")
        service = Connection(url, "key")
        # By default aiohttp reads the authorities of the system when it is imported.
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=trusted))
        async with aiohttp.ClientSession(connector=connector) as service._session:
            with pytest.raises(Unreachable) as refused:
                await service.send("GET", "/models")
    fix = "its certificate is not trusted; set SSL_CERT_FILE to the CA that signed it"
    assert str(refused.value) == f"the service at {url} is not used: {why or fix}"
