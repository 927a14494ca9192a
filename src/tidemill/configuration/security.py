"""How one gets into Kafka: only here does what is set about it become the arguments of its client library."""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from tidemill.configuration.misconfigured import Table


class Security(Table):
    """What a broker asks of its clients; by default nothing."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """That of the broker's listener: `SSL` encrypts the connection, `SASL` authenticates with a password."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How the password is sent to the broker."""
    username: str | None = None
    """Required with `SASL`."""
    password_env: str | None = None
    """Environment variable with the password; `SASL` requires this or `password_file`."""
    password_file: Path | None = None
    """File with the password, such as a mounted secret; read whenever a client is created."""
    ca_file: Path | None = None
    """PEM file of the authorities to trust with `SSL`; by default those of the system."""
    cert_file: Path | None = None
    """PEM file of the client's certificate, if the broker asks for one."""
    key_file: Path | None = None
    """PEM file of its key, without a passphrase; by default it is in `cert_file`."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.has_password and not (self.username and (self.password_env or self.password_file)):
            raise ValueError(f"{self.protocol} needs a username, and a password_env or a password_file")
        if self.password_env and self.password_file:
            raise ValueError("password_env and password_file: one of them says where the password is")
        if self.has_password and self.password_env and not os.environ.get(self.password_env):
            raise ValueError(f"the variable {self.password_env} holds no password")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("a key_file needs its cert_file")
        for file in (self.ca_file, self.cert_file, self.key_file, self.password_file):
            if file is not None and not file.is_file():
                raise ValueError(f"{file} is not there")
        return self

    @property
    def has_password(self) -> bool:
        """Whether the broker asks for a name and a password."""
        return self.protocol.startswith("SASL")

    @property
    def is_encrypted(self) -> bool:
        """Whether connections are TLS."""
        return self.protocol.endswith("SSL")

    @property
    def password(self) -> str:
        """The password, read at the time of asking.

        Raises:
            OSError: The file that holds it cannot be read.
        """
        if self.password_file is not None:
            return self.password_file.read_text("utf-8").rstrip("\r\n")
        return os.environ.get(self.password_env or "", "")

    @property
    def environ(self) -> dict[str, str]:
        """The variables by which a process that reads the settings is told the same."""
        told = self.model_dump(mode="json", exclude_defaults=True)
        return {f"TIDEMILL_KAFKA_SECURITY__{name.upper()}": str(value) for name, value in told.items()}

    def tls(self) -> ssl.SSLContext | None:
        """What a connection trusts and shows, read from the files at the time of asking; None without TLS.

        Raises:
            OSError: A file cannot be read, or is no PEM file of that kind.
        """
        if not self.is_encrypted:
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Kafka, and how one gets in."""

    servers: str
    """`host:port[,host:port…]`."""
    security: Security = field(default_factory=Security)

    def __str__(self) -> str:
        return self.servers


Kafka = Cluster | str
"""A cluster; a mere `host:port[,host:port…]` is one that asks for nothing."""


def cluster(kafka: Kafka) -> Cluster:
    """The cluster that is meant."""
    return Cluster(servers=kafka) if isinstance(kafka, str) else kafka


def client_options(kafka: Kafka) -> dict[str, Any]:
    """The arguments of any of aiokafka's clients that say where to connect and how.

    Raises:
        OSError: A file of the TLS settings cannot be used.
    """
    meant = cluster(kafka)
    security = meant.security
    options: dict[str, Any] = {
        "bootstrap_servers": meant.servers.split(","),
        "security_protocol": security.protocol,
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
