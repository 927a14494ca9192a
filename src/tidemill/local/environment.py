"""What each process is told by its environment: a list of what it may have, never a list of what it may not."""

from collections.abc import Mapping
from typing import Final

from tidemill.configuration.settings import ENV_PREFIX, SECRETS, Settings
from tidemill.runtime import notify

PLAIN: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV",
    "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "JAVA_HOME",
    "JAVA_TOOL_OPTIONS",
})  # fmt: skip
"""How the machine is set up; every process may know it."""
PLAIN_PREFIXES: Final = ("LC_", "PYTHON", "MALLOC_")
PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"})
"""They may hold a password; the S3 client reads them."""
STORE_PREFIX: Final = "AWS_"
NEEDS: Final[Mapping[str, frozenset[str]]] = {"api": frozenset({"signing_key"})}
"""The settings that are secrets, by the stage that is told them; the others are told none."""


def plain(given: Mapping[str, str]) -> dict[str, str]:
    """What a process is told that has nothing to do with Tidemill's settings: the broker, the demo's backend."""
    return {
        name: value
        for name, value in given.items()
        if name in PLAIN or name.startswith(PLAIN_PREFIXES)
    }  # fmt: skip


def of_stage(stage: str, settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """What a stage is told.

    Args:
        stage: Its name.
        settings: All settings; they say which variables hold the passwords of what a stage talks to.
        given: The environment of `tidemill up`.
    """
    secrets = {f"{ENV_PREFIX}{name.upper()}" for name in SECRETS - NEEDS.get(stage, frozenset())}
    kafka = settings.kafka_security.password_env
    servers = {backend.api_key_env for model in settings.models.values() for backend in model.backends}
    is_s3 = settings.store_url.startswith("s3:")

    def is_told(name: str) -> bool:
        upper = name.upper()
        if name == notify.VARIABLE or upper in secrets:
            return False
        if name in servers and name != kafka:
            return stage == "processors"
        if upper.startswith(ENV_PREFIX) or name == kafka:
            return True
        return is_s3 and (upper.startswith(STORE_PREFIX) or upper in PROXIES)

    return {**plain(given), **{name: value for name, value in given.items() if is_told(name)}}
