"""The users of the embedded broker: one for each role and an administrator, with generated passwords.

USERS/tidemill-<role>     the password                        USERS/kcat.conf          configuration of clients of
                                                              USERS/java.properties    direct producers
"""

import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from tidemill.schemas.log import acls

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
        write(new / acls.user(role), secrets.token_urlsafe(PASSWORD_BYTES))
    new.rename(folder)


def password(folder: Path, role: str) -> str:
    """The password of a role's user.

    Raises:
        OSError: It does not exist, or is not readable.
    """
    return (folder / acls.user(role)).read_text("ascii")


def write_client_files(folder: Path, servers: str) -> None:
    """Write the configuration of direct producers for kcat (and other librdkafka clients) and for Java."""
    name, word = acls.user(acls.PRODUCERS), password(folder, acls.PRODUCERS)
    common = f"bootstrap.servers={servers}\nsecurity.protocol=SASL_PLAINTEXT\n"
    write(folder / KCAT, f"{common}sasl.mechanisms={MECHANISM}\nsasl.username={name}\nsasl.password={word}\n")
    write(folder / JAVA, f"{common}sasl.mechanism={MECHANISM}\nsasl.jaas.config={jaas(name, word)}\n")


def jaas(name: str, word: str) -> str:
    """The login of a user in Java's JAAS format."""
    return f'{JAAS} required username="{name}" password="{word}";'


def write(file: Path, text: str) -> None:
    """Replace a file by one that only its owner can read, whatever the umask."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as new:
        new.write(text)
