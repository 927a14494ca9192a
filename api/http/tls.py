"""TLS of the API: the certificate of the settings, reloaded when it is renewed."""

import logging
import ssl
from pathlib import Path

from tidemill.configuration.security import load_certificate
from tidemill.configuration.settings import Settings, SettingsError

log = logging.getLogger(__name__)

FileVersions = tuple[tuple[int, int, int], ...]


class Certificate:
    """The server's certificate and key, in PEM files; `client_ca_file` restricts the clients, if it is given.

    Raises:
        SettingsError: A file cannot be used.
    """

    def __init__(self, cert_file: Path, key_file: Path | None, client_ca_file: Path | None) -> None:
        self._files = tuple(file for file in (cert_file, key_file, client_ca_file) if file is not None)
        self._cert, self._key, self._client_ca = cert_file, key_file, client_ca_file
        try:
            self._versions = self._stat()
            self._context = self._load()
        except OSError as error:
            raise SettingsError(f"tls_cert_file: {error}") from error

    def context(self) -> ssl.SSLContext:
        """The context of a new connection; open ones keep theirs."""
        return self._context

    def renew(self) -> None:
        """Load files that have changed; if they cannot be used, keep the old ones and log why."""
        try:
            if (versions := self._stat()) == self._versions:
                return
            self._versions = versions
            self._context = self._load()
        except OSError as error:
            log.warning("the new certificate cannot be used, the old one stays: %s", error)
        else:
            log.warning("the certificate was renewed")

    def _stat(self) -> FileVersions:
        stats = (file.stat() for file in self._files)
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def _load(self) -> ssl.SSLContext:
        # Python's defaults for a server: TLS 1.2 and above, and only ciphers with forward secrecy.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        load_certificate(context, self._cert, self._key)
        context.set_alpn_protocols(["http/1.1"])
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def certificate(settings: Settings) -> Certificate | None:
    """The certificate of the settings; None without TLS.

    Raises:
        SettingsError: A file cannot be used.
    """
    if settings.tls_cert_file is None:
        return None
    return Certificate(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
