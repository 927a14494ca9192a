"""Every setting of Tidemill, with its unit, its default and where it is read from.

A setting comes from the environment (`TIDEMILL_…`, nested names joined by two underscores), else from
`tidemill.toml`, else from the default below. Every process of one installation reads the same ones.
"""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tidemill.configuration import misconfigured
from tidemill.configuration.connections import Connections, is_local
from tidemill.configuration.misconfigured import Table
from tidemill.configuration.security import Cluster, Security
from tidemill.configuration.servers import Model, Price
from tidemill.schemas import configured
from tidemill.schemas.bounds import BATCH_LINES_MAX, LINE_BYTES_HIGHEST, REPLY_BYTES_MAX, Name, Word
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX
from tidemill.schemas.log import topics
from tidemill.schemas.resources import access
from tidemill.schemas.resources.batch import window_seconds
from tidemill.schemas.resources.bill import Tariff

MIB = 1 << 20
ENV_PREFIX = "TIDEMILL_"
_ORIGIN: Final = re.compile(r"(\*|[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+)\Z")
_BROKERS: Final = re.compile(r"\s*([^\s,:/@]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?\s*\Z")


class SettingsError(Exception):
    """A setting has a value that cannot be used; the text names it, one fault a line."""


class Limits(Table):
    """What a project may have at one time; what goes beyond is refused when it is asked for, with a 429."""

    batches_in_progress_max: Annotated[int, Field(ge=0)] = 1000
    """Batches that are not over."""
    lines_enqueued_max: Annotated[int, Field(ge=0)] = 5_000_000
    """Lines of such batches that are not final."""
    bytes_stored_max: Annotated[int, Field(ge=0)] = 1 << 40
    """Bytes of its files, inputs and results, with 4 KiB for each: its records, its rows, the rest of a disk's
    block. Results are written beyond it, too; uploads are not taken."""
    files_max: Annotated[int, Field(ge=0)] = 1_000_000
    """Its files, inputs and results. Results are written beyond it, too."""
    batches_max: Annotated[int, Field(ge=0)] = 1_000_000
    """Its batches, those that are over among them."""
    uploads_pending_max: Annotated[int, Field(ge=0)] = 1_000
    """Its uploads in parts that are not put together yet."""
    keys_max: Annotated[int, Field(ge=0)] = 1_000
    """Its keys that are not revoked."""
    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 1_000
    """Requests of one key to one api process, on average. One that reads an object counts as 1, a list, a download
    and what changes something as 5, and what goes through all lines of a batch as 20."""
    requests_burst: Annotated[int, Field(ge=20, le=10_000_000)] = 10_000
    """So many of them may come at one time, after a while without any."""


class Project(Table):
    """One project; one that is not named here has the general limits."""

    limits: Limits = Limits()
    """Its own limits; each that is not set is the one of `[limits]`."""
    weight: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    """Its share of the calls, beside the weights of the other projects that have lines waiting."""


ModelName = Annotated[Name, Field(pattern=r"^\S(.*\S)?$")]
ProjectName = Annotated[str, Field(pattern=access.PROJECT)]


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

    kafka: str | None = None
    """`host:port[,host:port…]` of an external Kafka; without it `tidemill up` starts its own."""
    kafka_security: Security = Security()
    """How to get into it; by default it asks for nothing."""
    store: str | None = None
    """Where files are kept: `file:///dir` or `s3://bucket/prefix`; by default the folder `store` of `data`."""
    presigned_downloads: bool = False
    """Whether downloads are answered with a 302 to a signed address of an S3 store, which clients must reach."""
    data: Path = Path(".tidemill")
    """Folder of everything one machine keeps: broker, store, state, logs."""
    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port of the API; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] | None = None
    """Names that the API answers to, as the header `Host` has them without a port; `*` is any part of one. By
    default any, and where `host` is a loopback address only `localhost`, `*.localhost` and loopback addresses."""
    cors_origins: tuple[Word, ...] = ()
    """Origins whose pages may use the API (CORS), like `https://app.example.com`; `*` is any. By default none."""
    path_aliases: bool = False
    """Whether `/openai/v1/…`, `/openai/…` and `/openai/deployments/{name}/…`, which Azure's clients ask for, lead
    to `/v1/…`; the name means nothing."""
    tls_cert_file: Path | None = None
    """PEM file of the API's certificate with its chain; with it the API speaks TLS, and nothing else. A renewed
    file is read within some seconds."""
    tls_key_file: Path | None = None
    """PEM file of the certificate's key, where it is not in the same file."""
    tls_client_ca_file: Path | None = None
    """PEM file of authorities; with it only clients get in that show a certificate of one of them. They need a key
    all the same."""
    connections: Connections = Connections()
    """What clients' connections may take."""
    health_host: str = "127.0.0.1"
    """Address on which a stage answers `/livez`, `/readyz` and `/metrics`."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Its port; 0 is none. `tidemill up` gives each stage a free one and writes it into `run.json`."""
    api_key: SecretStr | None = None
    """The operator's first key, of the default project; `tidemill keys make` prints a good one. `tidemill up`
    makes one and keeps it where none is set. It never stands in the file."""
    api_key_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Its SHA-256 in hex, instead of it: all that a process needs to know."""
    signing_key: SecretStr | None = None
    """What the api signs keys and tokens with, likewise; `tidemill keys init` makes it, with its public half."""
    signing_key_file: Path | None = None
    """File that holds it, instead of it."""
    verify_keys: str = ""
    """Public keys whose signatures ingest trusts, with commas between them; the api trusts its own besides."""
    intake_api_keys: bool | None = None
    """Whether producers may show API keys besides tokens; by default where `tidemill up` runs its own Kafka."""
    models: dict[ModelName, Model] = {}
    """The models by name."""

    processor_processes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes of processors that `tidemill up` runs; by default one for each two cores, and no more than
    `partitions`."""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    """Partitions of `commands`, `outcomes` and each `requests` topic that does not exist yet."""
    replication: Annotated[int, Field(ge=1, le=7)] = 1
    """Copies of each topic's records that is created."""
    windows: Annotated[tuple[Word, ...], Field(min_length=1)] = ("24h",)
    """The completion windows that a batch may ask for, like `30m`, `24h`, `7d`."""
    file_bytes_max: Annotated[int, Field(ge=1)] = 209_715_200
    """A batch whose input is larger fails."""
    upload_bytes_max: Annotated[int, Field(ge=1)] = 512 * MIB
    """A larger upload is refused at once; one between the two limits fails its batch, as at OpenAI."""
    assembled_bytes_max: Annotated[int, Field(ge=1)] = 8192 * MIB
    """An upload in parts that declares more is refused; a batch's input has its own limit all the same."""
    file_lines_max: Annotated[int, Field(ge=1, le=BATCH_LINES_MAX)] = 50_000
    """A batch whose input has more lines fails."""
    line_bytes_max: Annotated[int, Field(ge=1 << 16, le=LINE_BYTES_HIGHEST)] = LINE_BYTES_MAX
    """A line that is longer fails its batch. A stage holds such a line up to three times in memory."""
    reply_bytes_max: Annotated[int, Field(ge=1 << 16, le=LINE_BYTES_HIGHEST)] = REPLY_BYTES_MAX
    """A backend's reply that is larger ends its line; one that can be foreseen, of embeddings with `dimensions`,
    fails its batch before a call is made. processors and results hold such a reply up to four times in memory."""
    part_bytes: Annotated[int, Field(ge=64 * 1024)] = 8 * MIB
    """Finished lines of a batch are gathered up to this size before they are written to the store."""
    part_age_seconds: Annotated[float, Field(gt=0)] = 10
    """They are written at this age too, if they are fewer."""
    intake_idle_seconds: Annotated[float, Field(gt=0)] = 300
    """A stream of a direct producer that says nothing for so long is sealed."""
    grace_seconds: Annotated[float, Field(ge=0)] = 5
    """How long after a deadline or a cancel a line in flight may still land."""
    encrypt_log: bool = False
    """Whether lines in the log, parts and large results are encrypted, with a key that goes with their batch."""
    encryption_key_file: Path | None = None
    """File of the keys that wrap those of batches, one a line, 32 bytes in base64; the first one wraps. By default
    `encryption_keys` in `data`, which `tidemill up` makes."""
    batch_life_seconds: Annotated[int, Field(ge=3600)] | None = None
    """So long after its end a batch is deleted, with its results; by default somebody has to ask for it."""
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """What stays free on the disk of each broker and of a store in a folder: below twice as much the api answers
    uploads and batches with a 507, below it lines and results wait, and deletions always work; 0 keeps nothing."""
    batch_discount: Annotated[Decimal, Field(ge=0, le=1, max_digits=18)] = Decimal("0.5")
    """Share of the base price that a batch does not pay."""
    limits: Limits = Limits()
    """What one project may have, where nothing else is said of it."""
    projects: dict[ProjectName, Project] = {}
    """What is said of single projects, by name."""

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, content: Any) -> Any:
        for fault in configured.faults(content):
            raise ValueError(fault)
        for name, table in NAMED.items():
            for fault in misconfigured.unquoted(name, content.get(name), table):
                raise ValueError(fault)
        if said := misconfigured.unknown(content, cls):
            raise ValueError(said)
        return content

    @field_validator("kafka")
    @classmethod
    def _brokers(cls, kafka: str | None) -> str | None:
        if kafka is not None and not all(map(_BROKERS.match, kafka.split(","))):
            raise ValueError("it is host:port[,host:port…], without a scheme and without a password")
        return kafka

    @field_validator("store")
    @classmethod
    def _addressed(cls, store: str | None) -> str | None:
        parts = urlsplit(store or "file:///")
        if "@" in parts.netloc:
            raise ValueError("an address holds no name and no password; keys of S3 are set as AWS_ACCESS_KEY_ID "
                             "and AWS_SECRET_ACCESS_KEY")  # fmt: skip
        is_folder = parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/")
        if not (is_folder or (parts.scheme == "s3" and parts.netloc)):
            raise ValueError("an address is file:///dir or s3://bucket/prefix")
        return store

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.match(origin):
                raise ValueError(f"a browser sends an origin as https://app.example.com, in small letters and "
                                 f"without a path or a slash at its end; not as {origin}")  # fmt: skip
        return origins

    @field_validator("api_key")
    @classmethod
    def _strong(cls, key: SecretStr | None) -> SecretStr | None:
        if key and (fault := access.weakness(key.get_secret_value())):
            raise ValueError(f"{fault}; `tidemill keys make` prints a good one")
        return key

    @model_validator(mode="after")
    def _secured(self) -> Self:
        if self.kafka is None and self.kafka_security != Security():
            raise ValueError("kafka_security: it is for an external Kafka, and kafka is not set")
        return self

    @model_validator(mode="after")
    def _certified(self) -> Self:
        if self.tls_cert_file is None and (self.tls_key_file or self.tls_client_ca_file):
            raise ValueError("tls_cert_file: not set, and the API has no TLS without a certificate")
        return self

    @property
    def scheme(self) -> str:
        """How the API is spoken to: `http` or `https`."""
        return "http" if self.tls_cert_file is None else "https"

    @property
    def is_exposed(self) -> bool:
        """Whether keys and contents of the API pass a network in clear."""
        return self.tls_cert_file is None and not is_local(self.host)

    @property
    def cluster(self) -> Cluster:
        """The external Kafka, and how to get into it.

        Raises:
            SettingsError: None is set.
        """
        if self.kafka is None:
            raise SettingsError("kafka: not set; a stage on its own needs one (TIDEMILL_KAFKA)")
        return Cluster(servers=self.kafka, security=self.kafka_security)

    @field_validator("windows")
    @classmethod
    def _kept(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        kept_seconds = min(topic.retention_ms for topic in topics.TOPICS if topic.is_needed) // 1000
        for window in windows:
            if window_seconds(window) > kept_seconds:
                raise ValueError(
                    f"{window} is longer than the {kept_seconds // 86_400} days for which the log keeps lines"
                )
        return windows

    def limits_of(self, project: str) -> Limits:
        """What a project may have."""
        if (own := self.projects.get(project)) is None:
            return self.limits
        return self.limits.model_copy(update=own.limits.model_dump(exclude_unset=True))

    def tariff_of(self, model: str | None) -> Tariff:
        """The price of a batch of the model; of one that is not configured, nothing."""
        price = self.models[model].price if model in self.models else Price()
        return Tariff(
            input_per_million=price.input_per_million,
            output_per_million=price.output_per_million,
            discount=self.batch_discount,
        )

    @property
    def api_key_digest(self) -> str | None:
        """What the operator's first key is known by; None where none is set."""
        return access.digest(self.api_key.get_secret_value()) if self.api_key else self.api_key_sha256

    @property
    def store_url(self) -> str:
        """The store's address, the default filled in."""
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
        """The environment goes before the file, whose content arrives as init arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


NAMED: Final[dict[str, type[Table]]] = {"models": Model, "projects": Project}
"""The tables whose keys are names that users choose, and what each entry is."""
SECRETS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
)
"""The settings that are secrets: each process is told those that it needs, by its environment alone."""


def load(config: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        config: The file to read; without it `$TIDEMILL_CONFIG`, else `tidemill.toml` of the current folder
            where there is one.

    Raises:
        SettingsError: A file cannot be read, or a value cannot be used.
    """
    named = config or (Path(path) if (path := os.environ.get("TIDEMILL_CONFIG")) else None)
    file = named or Path("tidemill.toml")
    content: dict[str, Any] = {}
    if named or file.exists():
        try:
            content = misconfigured.parsed(file.read_bytes(), NAMED)
        except OSError as error:
            raise SettingsError(f"{file}: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"{file}: {error}") from error
    for name in sorted(SECRETS & content.keys()):
        raise SettingsError(f"{file}: {name}: every stage reads this file; set {ENV_PREFIX}{name.upper()} instead")
    try:
        return Settings(**content)
    except ValidationError as error:
        raise SettingsError("\n".join(f"{file}: {fault}" for fault in misconfigured.faults(error))) from error
