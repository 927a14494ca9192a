"""Reads secrets from environment variables and files, all in one way.

Editors, shells and mounted Secrets put a line end behind a secret, or a byte order mark before it: neither is part
of it. No message quotes a secret.
"""

import os
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 64 * 1024
_MARK: Final = "\ufeff"
"""The byte order mark."""


class SecretError(OSError):
    """A secret is missing or malformed; the text names its variable or file."""


def stripped(text: str) -> str:
    """The text without white space around it, and without a byte order mark."""
    return text.strip().removeprefix(_MARK).strip()


def checked(text: str, place: str, *, is_header: bool = False) -> str:
    """Strip a secret and check it.

    Args:
        text: The secret as it was given.
        place: Its variable or file, for the message.
        is_header: Whether it goes into an HTTP header, which cannot have all characters.

    Raises:
        SecretError: It is empty or has characters that it cannot have.
    """
    secret = stripped(text)
    if not secret:
        raise SecretError(f"{place} is empty")
    if not secret.isprintable():
        raise SecretError(f"{place} has a line break or another invisible character inside")
    if is_header and not (secret.isascii() and " " not in secret):
        raise SecretError(f"{place} has a space or a character that is not ASCII, so it is no key")
    return secret


def of_variable(name: str, *, is_header: bool = False) -> str:
    """The secret in an environment variable, as it is now.

    Raises:
        SecretError: See `checked`; also if the variable is not set.
    """
    if not (text := os.environ.get(name)):
        raise SecretError(f"the variable {name} is not set")
    return checked(text, f"the variable {name}", is_header=is_header)


def of_file(file: Path) -> str:
    """The secret that is the whole content of a file, read at each call.

    Raises:
        SecretError: See `checked` and `text_of`.
    """
    return checked(text_of(file), str(file))


def text_of(file: Path) -> str:
    """The text of a file with one or several secrets, as it is.

    Raises:
        SecretError: The file cannot be read, is too long, or is not UTF-8.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SecretError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise SecretError(f"{file} has more than {FILE_BYTES_MAX} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        # The cause would quote the content.
        raise SecretError(f"{file} is not text in UTF-8") from None
