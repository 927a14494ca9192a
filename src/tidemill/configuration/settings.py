"""Every setting of Tidemill, with its unit and default.

A setting comes from the environment (`TIDEMILL_…`, nested names joined by two underscores), else from
`tidemill.toml`, else from the default below. All processes of an installation need equal settings.
"""

import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Self, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as NotJson

from tidemill import credentials, ownership
from tidemill.configuration import misconfigured
from tidemill.configuration.buckets import Bucket, Buckets, StoreUrl
from tidemill.configuration.connections import Connections, Folder, Hosts, Logs, Origin, is_local, is_service_link
from tidemill.configuration.custom_endpoints import CustomEndpoint, EndpointPath
from tidemill.configuration.misconfigured import Table
from tidemill.configuration.projects import ForwardedHeaders, Limits, OpenId, Project
from tidemill.configuration.security import Brokers, Cluster, Security
from tidemill.configuration.servers import Model, ModelName, Price, Server, ServerName, Serving
from tidemill.configuration.serving import serving
from tidemill.schemas import configured, endpoints
from tidemill.schemas.bounds import BATCH_LINES_MAX, LINE_BYTES_HIGHEST, REPLY_BYTES_MAX, Word
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX
from tidemill.schemas.log import topics
from tidemill.schemas.resources import access
from tidemill.schemas.resources.batch import window_seconds
from tidemill.schemas.resources.bill import Tariff
from tidemill.schemas.resources.file import EXPIRES_AFTER_SECONDS
from tidemill.schemas.webhooks.addresses import Networks
from tidemill.wording import counted

MIB = 1 << 20
ENDPOINTS_MAX: Final = 100
"""Endpoints of the settings."""
ENV_PREFIX = "TIDEMILL_"


class SettingsError(Exception):
    """A setting is missing or invalid; the text names it, one fault a line."""


ProjectName = Annotated[str, Field(pattern=access.PROJECT)]
Life = Annotated[int, Field(ge=EXPIRES_AFTER_SECONDS[0], le=36_500 * 86_400)]
Discount = Annotated[Decimal, Field(ge=0, le=1, max_digits=18)]


class Variables(EnvSettingsSource):
    """The environment variables, without the line ends and spaces that shells and mounted Secrets add."""

    def _load_env_vars(self) -> dict[str, str | None]:
        found = {name: credentials.stripped(text or "") for name, text in super()._load_env_vars().items()}
        return {name: text for name, text in found.items() if text and not is_service_link(name, text)}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Decode a list, which is JSON or texts with commas between them, or a table, which is JSON."""
        # An entry by a name of the user has no field.
        is_list = misconfigured.is_list(getattr(field, "annotation", None))
        is_plain = is_list and '"' not in value
        try:
            found = super().decode_complex_value(field_name, field, value)
        except ValueError as error:
            if not is_plain:
                raise misconfigured.NoJson(value, is_list=is_list) from error
            found = value
        if not is_plain or found is None or isinstance(found, list | dict):
            return found
        return [text for part in value.split(",") if (text := part.strip())]


class Settings(BaseSettings):
    """All settings; immutable once loaded."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    kafka: Brokers | None = None
    """`host:port[,host:port…]` of an external Kafka. By default `tidemill up` starts its own."""
    kafka_security: Security = Security()
    """TLS and SASL of that Kafka; by default neither."""
    store: StoreUrl | None = None
    """Object store: `file:///dir` or `s3://bucket/prefix`; by default the folder `store` of `data`."""
    presigned_downloads: bool = False
    """Answer downloads with a 302 to a signed address of the S3 store, which clients must be able to reach."""
    data: Folder = Path(".tidemill")
    """Folder for everything that this machine stores: broker, store, state, logs. `~` is the home folder.
    `tidemill up` closes it to other users, and begins only in a new or an empty one."""
    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port of the API; 0 takes a free one."""
    allowed_hosts: Hosts | None = None
    """Host names that requests may name, without a port; `*` matches any part of a name, and an IPv6 address is in
    `[ ]`. By default any name; if `host` is a loopback address, only `localhost`, `*.localhost` and loopback
    addresses."""
    cors_origins: tuple[Origin, ...] = ()
    """Origins whose pages may use the API (CORS), like `https://app.example.com`; `*` is any. By default
    none."""
    path_aliases: bool = False
    """Serve `/v1/…` also below `/openai/v1/…`, `/openai/…` and `/openai/deployments/{name}/…`, the paths of
    Azure's clients; the deployment's name is ignored."""
    tls_cert_file: Path | None = None
    """PEM file of the API's certificate with its chain. If set, the API speaks only TLS. A renewed file takes
    effect within seconds."""
    tls_key_file: Path | None = None
    """PEM file of the certificate's key, if it is not in the same file."""
    tls_client_ca_file: Path | None = None
    """PEM file of authorities. If set, the API accepts only clients with a certificate of one of them; they need
    an API key as well."""
    connections: Connections = Connections()
    """Bounds on clients' connections."""
    health_host: str = "127.0.0.1"
    """Address on which a stage answers `/livez`, `/readyz` and `/metrics`."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of these; 0 for none. `tidemill up` picks a free port for each stage and writes it to `run.json`."""
    log: Logs = Logs()
    """What each process writes to its log."""
    api_key: SecretStr | None = None
    """The operator's first key, in the project `default`; `tidemill keys make` generates one. If it is not
    set, `tidemill up` generates one. Not allowed in the file."""
    api_key_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of that key in hex, in place of the key; no process needs more."""
    signing_key: SecretStr | None = None
    """Key with which the api signs keys and tokens; `tidemill keys init` generates it with its public key. Not
    allowed in the file."""
    signing_key_file: Path | None = None
    """File with the signing key, in place of `signing_key`."""
    verify_keys: tuple[Word, ...] = ()
    """Public keys whose signatures ingest trusts; the api also trusts its own."""
    openid: OpenId | None = None
    """Sign-in at the dashboard with OpenID Connect; by default with keys alone."""
    intake_api_keys: bool | None = None
    """Accept API keys from direct producers, besides tokens; by default only with the Kafka of `tidemill up`."""
    endpoints: Annotated[dict[EndpointPath, CustomEndpoint], Field(max_length=ENDPOINTS_MAX)] = {}
    """Further endpoints by path, like `[endpoints."/v1/mine"]`."""
    servers: dict[ServerName, Server] = {}
    """The inference servers by name; models name those that serve them."""
    models: dict[ModelName, Model] = {}
    """The models by name."""
    buckets: Buckets = {}
    """Connections to buckets of users, by name: where projects may read inputs from, and write outputs to."""

    forward_headers: ForwardedHeaders = ()
    """Headers of the request that creates a batch which go with each call of the batch, like `x-tenant`; at
    most 8 of them for a batch. They are stored and shown like metadata, so do not put secrets there."""
    processor_processes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes of processors that `tidemill up` runs; by default one for each two cores, and at most
    `partitions`."""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    """Partitions of `commands`, `outcomes` and each `requests` topic when Tidemill creates them."""
    replication: Annotated[int, Field(ge=1, le=7)] = 1
    """Copies of each topic when Tidemill creates it."""
    windows: Annotated[dict[Word, Discount], Field(min_length=1)] = {"24h": Decimal("0.5")}
    """Completion windows that a batch may ask for, like `30m`, `24h`, `7d`, each with its discount: the share of
    the base price that its batches do not pay. If a batch's window is gone, the default one's discount counts."""
    default_window: Word | None = None
    """Window of a create that names none; by default such a create is refused, as at OpenAI. Reruns, replays and
    streams that name none have this window, else the first of `windows`."""
    bill_copies: bool = False
    """Count and bill a line with the answer to an equal one (`dedupe`) like that line; by default it counts
    nothing and costs nothing."""
    file_bytes_max: Annotated[int, Field(ge=1)] = 209_715_200
    """Largest input of a batch; a batch with a larger one fails."""
    upload_bytes_max: Annotated[int, Field(ge=1)] = 512 * MIB
    """Largest upload. A batch fails if its input lies between `file_bytes_max` and this, as at OpenAI."""
    assembled_bytes_max: Annotated[int, Field(ge=1)] = 8192 * MIB
    """Largest multipart upload; the input of a batch has its own limit as well."""
    file_lines_max: Annotated[int, Field(ge=1, le=BATCH_LINES_MAX)] = 50_000
    """Most lines of an input; a batch with more fails."""
    line_bytes_max: Annotated[int, Field(ge=1 << 16, le=LINE_BYTES_HIGHEST)] = LINE_BYTES_MAX
    """Longest line; a longer one fails its batch. A stage holds up to three copies of a line in memory."""
    reply_bytes_max: Annotated[int, Field(ge=1 << 16, le=LINE_BYTES_HIGHEST)] = REPLY_BYTES_MAX
    """Largest reply; a larger one fails its line. If the request shows its size (embeddings with `dimensions`),
    the batch fails before any call. processors and results hold up to four copies of a reply in memory."""
    part_bytes: Annotated[int, Field(ge=64 * 1024)] = 8 * MIB
    """results writes finished lines of a batch to the store in parts of this size, which it collects in memory;
    ingest keeps lines of streams in parts of it."""
    part_age_seconds: Annotated[float, Field(ge=0.01, le=3_600)] = 10
    """results writes a smaller part at this age."""
    intake_idle_seconds: Annotated[float, Field(ge=0.1, le=7 * 86_400)] = 300
    """Seal a direct producer's stream if it gets no record for this time."""
    grace_seconds: Annotated[float, Field(ge=0, le=86_400)] = 5
    """Time after a deadline or a cancel in which calls in flight may still finish; then they are aborted."""
    stop_seconds: Annotated[float, Field(ge=0, le=86_400)] = 7
    """How long processors wait for calls in flight at a stop (`up`: at most 7). Kill them five seconds later."""
    encrypt_log: bool = False
    """Encrypt lines in the log, parts and large results by keys of batches; deleting a batch destroys its key."""
    encryption_key_file: Path | None = None
    """File of the keys that wrap those of batches, one a line, 32 bytes in base64; the first one wraps new keys.
    By default `encryption_keys` in `data`, which `tidemill up` creates."""
    webhook_allow: Networks = ()
    """Networks that webhooks may reach besides public addresses, like `10.1.0.0/16`; only these may use `http://`."""
    input_life_seconds: Life = 30 * 86_400
    """Delete an input of batches this long after its creation, unless its `expires_after` says otherwise; a batch
    at work holds it until its end."""
    output_life_seconds: Life = 30 * 86_400
    """Delete output and error files this long after their creation, unless the batch's `output_expires_after`
    says otherwise."""
    batch_life_seconds: Life | None = None
    """Delete batches and their results this long after their end; by default only on request."""
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Free space to keep on the disk of each broker and of a store in a folder. With less than twice the
    reserve the api answers uploads and new batches with 507; with less than the reserve lines and results wait.
    Deletions always work; 0 keeps no reserve."""
    limits: Limits = Limits()
    """Default limits of a project."""
    projects: dict[ProjectName, Project] = {}
    """Settings of projects, by name."""

    @model_validator(mode="before")
    @classmethod
    def _check_content(cls, content: Any) -> Any:
        if found := list(content_faults(content)):
            raise ValueError("\n".join(found))
        return misconfigured.marked(content, cls)

    @field_validator("endpoints")
    @classmethod
    def _configure(cls, custom: dict[str, CustomEndpoint]) -> dict[str, CustomEndpoint]:
        if known := custom.keys() & set(endpoints.BUILT_IN):
            raise ValueError(f"{min(known)} is built in")
        # Before the models, which name them, and before any stage begins.
        endpoints.configure({path: one.endpoint(path) for path, one in custom.items()})
        return custom

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key and (fault := access.weakness(key.get_secret_value())):
            raise ValueError(f"{fault}; `tidemill keys make` generates one")
        return key

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.kafka is None and self.kafka_security != Security():
            raise ValueError("kafka_security: it is set without kafka, the address of the external Kafka")
        for name in ("tls_key_file", "tls_client_ca_file"):
            if self.tls_cert_file is None and getattr(self, name) is not None:
                raise ValueError(f"{name}: it is set without tls_cert_file")
        if self.default_window is not None and self.default_window not in self.windows:
            raise ValueError(f"default_window: {self.default_window} is not one of windows")
        return self

    @model_validator(mode="after")
    def _named(self) -> Self:
        serving(self.servers, self.models)
        return self

    @property
    def serving(self) -> Serving:
        """All servers by name, those of the short form included, and which of them serve each model."""
        return serving(self.servers, self.models)

    @property
    def scheme(self) -> str:
        """Scheme of the API's address: `http` or `https`."""
        return "http" if self.tls_cert_file is None else "https"

    @property
    def is_exposed(self) -> bool:
        """Whether keys and prompts cross a network unencrypted."""
        return self.tls_cert_file is None and not is_local(self.host)

    @property
    def cluster(self) -> Cluster:
        """Address and credentials of the external Kafka.

        Raises:
            SettingsError: No external Kafka is set.
        """
        if self.kafka is None:
            raise SettingsError("kafka: not set; a stage outside `tidemill up` needs a Kafka (TIDEMILL_KAFKA)")
        return Cluster(servers=self.kafka, security=self.kafka_security)

    @field_validator("windows")
    @classmethod
    def _check_windows(cls, windows: dict[str, Decimal]) -> dict[str, Decimal]:
        for window in windows:
            if window_seconds(window) > topics.LINES_SECONDS:
                kept = counted(topics.LINES_SECONDS // 86_400, "day")
                raise ValueError(f"{window} is longer than the {kept} that the log keeps lines")
        return windows

    @property
    def usual_window(self) -> str:
        """The window of a rerun, a replay or a stream that names none."""
        return self.default_window or next(iter(self.windows))

    def limits_of(self, project: str) -> Limits:
        """The limits of a project."""
        if (own := self.projects.get(project)) is None:
            return self.limits
        return self.limits.model_copy(update=own.limits.model_dump(exclude_unset=True))

    def forwarded_headers(self, project: str) -> tuple[str, ...]:
        """The headers of a project's creates that go with each call."""
        own = self.projects[project].forward_headers if project in self.projects else None
        return self.forward_headers if own is None else own

    def tariff(self, price: Price, window: str) -> Tariff:
        """The price of a batch with this window, of a model with this base price."""
        return Tariff(
            input_per_million=price.input_per_million,
            output_per_million=price.output_per_million,
            per_image=price.per_image,
            per_audio_minute=price.per_audio_minute,
            discount=self.windows.get(window, self.windows[self.usual_window]),
        )

    @property
    def api_key_digest(self) -> str | None:
        """SHA-256 of the operator's first key in hex; None if it is not set."""
        return access.digest(self.api_key.get_secret_value()) if self.api_key else self.api_key_sha256

    @property
    def store_url(self) -> str:
        """The address of the store, set or by default."""
        return self.store or (self.data / "store").resolve().as_uri()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment takes precedence over the file, whose content arrives as init arguments."""
        del env_settings, dotenv_settings, file_secret_settings
        return Variables(settings_cls), init_settings


NAMED: Final[dict[str, type[Table]]] = {
    "endpoints": CustomEndpoint,
    "servers": Server,
    "models": Model,
    "projects": Project,
    "buckets": Bucket,
}
"""Tables whose keys are names chosen by the user, and the types of their entries."""


def content_faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Values out of bounds, and names that need quotes; until they are mended, nothing else is checked."""
    yield from configured.first_faults(content)
    for name, table in NAMED.items():
        yield from misconfigured.unquoted(name, content.get(name), table)


SECRETS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
)
"""Secret settings; a process gets those that it needs, through its environment only."""


def file_of(config: Path | None = None) -> Path:
    """The settings file: the given one, else `$TIDEMILL_CONFIG`, else `tidemill.toml` in the current folder."""
    return config or Path(os.environ.get("TIDEMILL_CONFIG") or "tidemill.toml")


def load(config: Path | None = None) -> Settings:
    """Read the settings of the environment and of the file (`file_of`), which may be missing if it is not named.

    Raises:
        SettingsError: The file cannot be read or trusted, or a setting is invalid.
    """
    file = file_of(config)
    content: dict[str, Any] = {}
    if (is_named := bool(config or os.environ.get("TIDEMILL_CONFIG"))) or os.path.lexists(file):
        try:
            if not is_named:
                ownership.check_found(file, "--config FILE or TIDEMILL_CONFIG=FILE")
            content = misconfigured.parsed(file.read_bytes(), NAMED)
        except OSError as error:
            raise SettingsError(f"{file}: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"{file}: {error}") from error
    for name in sorted(SECRETS & content.keys()):
        raise SettingsError(f"{file}: {name}: every stage reads this file; set {ENV_PREFIX}{name.upper()} instead")
    try:
        return Settings(**content)
    except RecursionError as error:
        raise SettingsError("a variable TIDEMILL_… has JSON that is nested too deeply") from error
    except (ValidationError, NotJson) as error:
        raise SettingsError("\n".join(misconfigured.described(error, file, ENV_PREFIX))) from error
