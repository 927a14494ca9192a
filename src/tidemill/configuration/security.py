"""TLS and SASL settings of Kafka clients, and the arguments of the client library that follow from them."""

import functools
import os
import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, model_validator

from tidemill import credentials
from tidemill.configuration.misconfigured import Table
from tidemill.credentials import SecretError

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z", re.ASCII)
_KEY_WORD: Final = re.compile(r"(?=[A-Z0-9]*[a-z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{24,}(?![A-Za-z0-9])")
"""A long word of letters and digits, as in keys like `hf_…`, `sk_live_…` and `gsk_…`."""


def _check_variable(name: str) -> str:
    # The text may be the secret itself, so no message quotes it.
    if not _VARIABLE.match(name):
        raise ValueError("expected the name of an environment variable: letters, digits and _, without $ and {}")
    if _KEY_WORD.search(name):
        raise ValueError("this looks like the secret itself; expected the name of the variable that has it")
    return name


VariableName = Annotated[str, AfterValidator(_check_variable)]
"""The name of an environment variable that has a secret; it may be logged and shown."""


_NO_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's codes of a certificate whose authority is not known, or that signed itself."""
_OTHER_NAME: Final = frozenset({62, 64})
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")

_BROKERS: Final = re.compile(r"\s*([^\s,:/@]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?\s*\Z")


def _check_brokers(kafka: str) -> str:
    if not all(map(_BROKERS.match, kafka.split(","))):
        raise ValueError("expected host:port[,host:port…], without a scheme or a password")
    return kafka


Brokers = Annotated[str, AfterValidator(_check_brokers)]
"""`host:port[,host:port…]`."""


class Security(Table):
    """TLS and SASL of the connections to a broker; by default neither."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """The protocol of the broker's listener: `SSL` encrypts the connection, `SASL` adds a password."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How the password is sent to the broker."""
    username: str | None = None
    """Required with `SASL`."""
    password_env: VariableName | None = None
    """Environment variable with the password; `SASL` requires this or `password_file`."""
    password_file: Path | None = None
    """File with the password, such as a mounted secret; read whenever a client is created."""
    ca_file: Path | None = None
    """PEM file of the authorities to trust with `SSL`; by default those of the system."""
    cert_file: Path | None = None
    """PEM file of the client's certificate, if the broker requires one."""
    key_file: Path | None = None
    """PEM file of its key, without a passphrase; by default it is in `cert_file`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.has_password and not (self.username and (self.password_env or self.password_file)):
            raise ValueError(f"{self.protocol} needs a username, and a password_env or a password_file")
        if self.password_env and self.password_file:
            raise ValueError("password_env and password_file are both set; keep the one that has the password")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is set, but not the cert_file that it belongs to")
        for file in (self.ca_file, self.cert_file, self.key_file, self.password_file):
            if file is not None and not file.is_file():
                raise ValueError(f"{file}: no such file")
        if self.has_password:
            try:
                _ = self.password
            except SecretError as error:
                raise ValueError(f"the password: {error}") from None
        return self

    @property
    def has_password(self) -> bool:
        """Whether the broker requires a name and a password."""
        return self.protocol.startswith("SASL")

    @property
    def is_encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.protocol.endswith("SSL")

    @property
    def password(self) -> str:
        """The password, read at each call.

        Raises:
            SecretError: Its file or variable does not have one.
        """
        if self.password_file is not None:
            return credentials.of_file(self.password_file)
        return credentials.of_variable(self.password_env or "")

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that give these settings to another process."""
        changed = self.model_dump(mode="json", exclude_defaults=True)
        return {f"TIDEMILL_KAFKA_SECURITY__{name.upper()}": str(value) for name, value in changed.items()}

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context, read from the files at each call; None without TLS.

        Raises:
            OSError: A file cannot be read, or is not a PEM file of its kind.
        """
        if not self.is_encrypted:
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            load_certificate(context, self.cert_file, self.key_file)
        return context


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None = None) -> None:
    """Load a certificate and its key.

    Raises:
        OSError: A file cannot be read, is not a PEM file of its kind, or has an encrypted key.
    """

    def refuse() -> str:
        # Without this call OpenSSL asks for the password on the terminal, and waits.
        raise OSError(f"{key or cert} has an encrypted key; store it without a password")

    context.load_cert_chain(cert, key, password=refuse)


class NotConnected(OSError):
    """No connection, for the reason in the text, which names no address."""


def no_connection(error: Exception, *, fix: str = "") -> str:
    """Why a connection could not be opened, without an address; `fix` follows if the authority is not known."""
    match error:
        case ssl.SSLCertVerificationError():
            return _of_certificate(error, fix)
        case ssl.SSLError():
            why = f"the TLS handshake fails ({error.reason or 'no reason'})"
        case socket.gaierror():
            why = "its host name does not resolve"
        case UnicodeError():
            why = "its host name is not valid"
        case TimeoutError():
            why = "no connection in time"
        case OSError(errno=int(number)):
            why = os.strerror(number)
        case NotConnected():
            why = str(error)
        case _:
            # The errors of several addresses of a name.
            numbers = dict.fromkeys(_ERRNO.findall(str(error)))
            why = ", ".join(os.strerror(int(number)) for number in numbers) or "no connection"
    return why


def _of_certificate(error: ssl.SSLCertVerificationError, fix: str) -> str:
    if error.verify_code in _NO_AUTHORITY:
        return f"its certificate is not trusted{fix}"
    if error.verify_code in _OTHER_NAME:
        return "its certificate is for another name"
    return f"its certificate is not valid ({error.verify_message})"


@functools.lru_cache(maxsize=256)
def tls_fault(ca: Path | None, cert: Path | None, key: Path | None, stamps: object) -> str | None:
    """The fault of PEM files with these times and sizes; a bundle takes 26 ms, and processors ask often."""
    del stamps
    context, what = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), f"certificates in {ca}"
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if cert is not None:
            what = f"certificate in {cert} with its key in {key or cert}"
            load_certificate(context, cert, key)
    except ssl.SSLError as error:
        return f"there is no {what} in PEM format ({error.reason or 'no PEM'})"
    except OSError as error:
        return str(error)
    return None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Address and credentials of a Kafka."""

    servers: str
    """`host:port[,host:port…]`."""
    security: Security = field(default_factory=Security)

    def __str__(self) -> str:
        return self.servers


Kafka = Cluster | str
"""A cluster; a string `host:port[,host:port…]` is one without TLS and SASL."""


def cluster(kafka: Kafka) -> Cluster:
    """The cluster for an address or a cluster."""
    return Cluster(servers=kafka) if isinstance(kafka, str) else kafka


IDLE_MS: Final = 180_000
"""How long a client keeps a connection that it does not use: balancers drop those of 240 s and more silently."""


def client_options(kafka: Kafka) -> dict[str, Any]:
    """The arguments of aiokafka's clients for address, TLS, SASL, and connections that they do not use.

    Raises:
        OSError: A file of the TLS settings cannot be used.
    """
    found = cluster(kafka)
    security = found.security
    options: dict[str, Any] = {
        "bootstrap_servers": found.servers.split(","),
        "security_protocol": security.protocol,
        "connections_max_idle_ms": IDLE_MS,
        # The request for metadata, too, uses a connection after this time.
        "metadata_max_age_ms": IDLE_MS,
    }
    if security.is_encrypted:
        options["ssl_context"] = security.tls()
    if security.has_password:
        options |= {
            "sasl_mechanism": security.sasl_mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": security.password,
        }
    return options
