"""Client certificates and unusable files, by real handshakes in memory."""

import ssl

import pytest
import trustme

from tidemill.api.http import hosts, tls
from tidemill.configuration.settings import Settings, SettingsError


@pytest.fixture
def authority(tmp_path):
    """An authority, and the certificate that it signed for a server."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return authority


def shakes(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """Whether a handshake succeeds, and the server receives what the client sends."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(back, there, server_hostname="localhost"),
        server.wrap_bio(there, back, server_side=True),
    ]
    try:
        for _ in range(4):
            for side in sides:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        sides[0].write(b"x")
        return sides[1].read(1) == b"x"
    except ssl.SSLError:
        return False


def test_clients_need_a_certificate_of_the_authority(tmp_path, authority):
    """A client without one, or with another authority's, fails the handshake."""
    settings = Settings(tls_cert_file=tmp_path / "cert.pem", tls_key_file=tmp_path / "key.pem")
    caller = tls.certificate(settings.model_copy(update={"tls_client_ca_file": tmp_path / "ca.pem"})).context()
    for signing, is_let_in in ((authority, True), (trustme.CA(), False), (None, False)):
        client = ssl.create_default_context()
        authority.configure_trust(client)
        if signing is not None:
            signing.issue_cert("someone").configure_cert(client)
        assert shakes(caller, client) == is_let_in
        assert shakes(tls.certificate(settings).context(), client)


def test_unusable_certificates_are_reported_at_the_start(tmp_path, authority):
    """Before the server listens."""
    assert authority
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for update in (
        {"tls_cert_file": tmp_path / "nowhere.pem"},
        {"tls_cert_file": tmp_path / "nonsense.pem"},
        {"tls_cert_file": tmp_path / "cert.pem"},
        {"tls_cert_file": tmp_path / "cert.pem", "tls_key_file": tmp_path / "nonsense.pem"},
    ):
        with pytest.raises(SettingsError, match="tls_cert_file"):
            tls.certificate(Settings(**update))
    with pytest.raises(ValueError, match="tls_cert_file"):
        Settings(tls_key_file=tmp_path / "key.pem")
    assert tls.certificate(Settings()) is None


@pytest.mark.parametrize(
    ("patterns", "listens_on", "answered", "refused"),
    [
        (None, "127.0.0.1", ["localhost", "127.8.8.8:1", "[::1]"], ["a.b", "127.0.0.1.a.b", "[::2]", "", "::"]),
        (None, "localhost", ["localhost:80"], ["a.b"]),
        (None, "0.0.0.0", ["a.b", ""], []),
        (("*",), "127.0.0.1", ["a.b:1", ""], []),
        (("A.b", "*.c.d"), "0.0.0.0", ["a.B:80", "x.c.d"], ["c.d", "localhost", "a.b.e", ""]),
    ],
)
def test_allowed_hosts(patterns, listens_on, answered, refused):
    """By default the names of this machine, on a loopback address."""
    is_ours = hosts.check(patterns, listens_on)
    for names, wanted in ((answered, True), (refused, False)):
        for name in names:
            assert (name, is_ours([(b"accept", b"*"), (b"host", name.encode())])) == (name, wanted)


def test_an_exposed_address_logs_a_warning(tmp_path):
    """Unless there is TLS."""
    for host, cert, is_exposed in (
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("10.0.0.7", None, True),
        ("0.0.0.0", tmp_path / "cert.pem", False),
    ):
        assert Settings(host=host, tls_cert_file=cert).is_exposed == is_exposed
