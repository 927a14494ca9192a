"""The environment of each process: an allow list, so that no process gets a secret it does not need."""

from collections.abc import Collection, Mapping
from typing import Final

from tidemill.configuration.servers import KEY_PREFIX
from tidemill.configuration.settings import ENV_PREFIX, SECRETS, Settings
from tidemill.runtime import notify

PLAIN: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV",
    "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "JAVA_TOOL_OPTIONS", "TIDEMILL_CACHE",
})  # fmt: skip
"""Variables of the machine, for every process."""
PLAIN_PREFIXES: Final = ("LC_", "PYTHON", "MALLOC_")
AT_IMPORT: Final = frozenset({"OTEL_PROPAGATORS", "OTEL_PYTHON_CONTEXT", "OTEL_PYTHON_TRACER_PROVIDER"})
"""Variables that libraries of the stages read when they are imported; none is a secret."""
PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"})
"""They may contain a password; only the S3 client reads them."""
STORE_PREFIX: Final = "AWS_"
TRACES_PREFIX: Final = "OTEL_"
"""Prefix of the variables that say where traces go, and how many; for every stage."""
BUCKET_STAGES: Final = frozenset({"api", "ingest", "results"})
"""The stages that reach buckets of users."""
STOP_SECONDS_MAX: Final = 7
"""The longest `stop_seconds` of a process of `tidemill up`, which kills it after ten seconds."""
NEEDS: Final[Mapping[str, frozenset[str]]] = {"api": frozenset({"signing_key"})}
"""Secret settings by stage; other stages get none."""


def plain(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that needs no settings of Tidemill: the demo backend."""
    return {
        name: value
        for name, value in given.items()
        if name in PLAIN or name.startswith(PLAIN_PREFIXES)
    }  # fmt: skip


def fork_server(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the process that imports the stages."""
    return {**plain(given), **{name: given[name] for name in AT_IMPORT if name in given}}


def changed(settings: Settings) -> list[str]:
    """What the stages get otherwise than the settings say, in words."""
    if settings.stop_seconds <= STOP_SECONDS_MAX:
        return []
    words = "`tidemill up` stops within ten seconds"
    return [f"stop_seconds is {STOP_SECONDS_MAX}, not {settings.stop_seconds:g}: {words}"]


def of_stage(stage: str, settings: Settings, given: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    """The environment of a stage, from that of `tidemill up`; `keys` names the variables with keys of servers."""
    secrets = {f"{ENV_PREFIX}{name.upper()}" for name in SECRETS - NEEDS.get(stage, frozenset())}
    kafka = settings.kafka_security.password_env
    is_s3 = settings.store_url.startswith("s3:")
    buckets = settings.buckets.values()
    bucket_keys = {bucket.secret_access_key_env for bucket in buckets}
    # A connection without a key uses the machine's credentials, which may need the proxies.
    reaches_buckets = bool(buckets) and stage in BUCKET_STAGES

    def is_allowed(name: str) -> bool:
        upper = name.upper()
        if name == notify.VARIABLE or upper in secrets:
            return False
        if name in bucket_keys and name != kafka:
            return stage in BUCKET_STAGES
        if (name in keys or name.startswith(KEY_PREFIX)) and name != kafka:
            return stage == "processors"
        if upper.startswith((ENV_PREFIX, TRACES_PREFIX)) or name == kafka:
            return True
        is_s3_client = (is_s3 and stage != "webhooks") or reaches_buckets
        return is_s3_client and (upper.startswith(STORE_PREFIX) or upper in PROXIES)

    found = {**plain(given), **{name: value for name, value in given.items() if is_allowed(name)}}
    if settings.stop_seconds > STOP_SECONDS_MAX:
        found[f"{ENV_PREFIX}STOP_SECONDS"] = str(STOP_SECONDS_MAX)
    if settings.log.format == "auto":
        # People read the log file of a stage.
        found[f"{ENV_PREFIX}LOG__FORMAT"] = "text"
    return found
