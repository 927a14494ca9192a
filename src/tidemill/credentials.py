"""Reads secrets from environment variables and files, all in one way.

Editors, shells and mounted Secrets put a line end behind a secret, or a byte order mark before it: neither is part
of it. No message quotes a secret.
"""

import os
from typing import Final

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
