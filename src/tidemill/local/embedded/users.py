"""The users of the embedded broker: one for each role and one above them, with passwords made at the first start.

USERS/tidemill-<role>     the password, and nothing else      USERS/kcat.conf          the way in of direct
                                                              USERS/java.properties    producers, for clients
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
    """Make the passwords, unless they are there; a crash leaves none or all of them.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder.exists():
        return
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    for role in ROLES:
        # Letters, digits, dash and underscore: nothing that any of the formats would have to escape.
        write(new / acls.user(role), secrets.token_urlsafe(PASSWORD_BYTES))
    new.rename(folder)


def password(folder: Path, role: str) -> str:
    """The password of a role's user.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    return (folder / acls.user(role)).read_text("ascii")


def tell_producers(folder: Path, servers: str) -> None:
    """Write the files by which kcat (any client of librdkafka) and Java's get in as direct producers."""
    name, word = acls.user(acls.PRODUCERS), password(folder, acls.PRODUCERS)
    common = f"bootstrap.servers={servers}\nsecurity.protocol=SASL_PLAINTEXT\n"
    write(folder / KCAT, f"{common}sasl.mechanisms={MECHANISM}\nsasl.username={name}\nsasl.password={word}\n")
    write(folder / JAVA, f"{common}sasl.mechanism={MECHANISM}\nsasl.jaas.config={jaas(name, word)}\n")


def jaas(name: str, word: str) -> str:
    """How Java is told a user and a password."""
    return f'{JAAS} required username="{name}" password="{word}";'


def write(file: Path, text: str) -> None:
    """Write a file that its owner alone can read, whatever the umask, and whatever stood there."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as new:
        new.write(text)
