"""The users of the embedded broker: one for each role and an administrator, with generated passwords.

USERS/tidemill-<role>     the password                        USERS/kcat.conf          configuration of clients of
                                                              USERS/java.properties    direct producers
"""

import secrets
import shutil
from pathlib import Path
from typing import Final

from tidemill import credentials
from tidemill.schemas.log import acls
from tidemill.storage.atomic_file import write_private

PASSWORD_BYTES: Final = 24
MECHANISM: Final = "SCRAM-SHA-512"
JAAS: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"
KCAT: Final = "kcat.conf"
JAVA: Final = "java.properties"
ROLES: Final = (acls.ADMIN, *acls.ROLES)


def make(folder: Path) -> None:
    """Generate the passwords if they do not exist; a crash leaves none or all of them.

    Raises:
        OSError: The folder is not writable.
    """
    if folder.exists():
        return
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    for role in ROLES:
        # Letters, digits, dash and underscore, which need no escaping in any of the formats.
        write_private(new / acls.user(role), secrets.token_urlsafe(PASSWORD_BYTES))
    new.rename(folder)


def password(folder: Path, role: str) -> str:
    """The password of a role's user.

    Raises:
        OSError: It does not exist, or is not readable.
    """
    return credentials.of_file(folder / acls.user(role))


def write_client_files(folder: Path, servers: str) -> None:
    """Write the configuration of direct producers for kcat (and other librdkafka clients) and for Java."""
    name, word = acls.user(acls.PRODUCERS), password(folder, acls.PRODUCERS)
    common = f"bootstrap.servers={servers}\nsecurity.protocol=SASL_PLAINTEXT\n"
    write_private(
        folder / KCAT, f"{common}sasl.mechanisms={MECHANISM}\nsasl.username={name}\nsasl.password={word}\n"
    )
    write_private(folder / JAVA, f"{common}sasl.mechanism={MECHANISM}\nsasl.jaas.config={jaas(name, word)}\n")


def jaas(name: str, word: str) -> str:
    """The login of a user in Java's JAAS format."""
    return f'{JAAS} required username="{name}" password="{word}";'
