"""Dependencies of the api on a folder: a real view and store, a log that is a list, a clock that stands still."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from support.catalog import fixed_catalog
from support.trust import SIGNER, VERIFIER

from tidemill.api.access.auth import Keys, Principal
from tidemill.api.access.people import People
from tidemill.api.access.provider import Provider
from tidemill.api.access.sessions import Sessions
from tidemill.api.app import create_app
from tidemill.api.dependencies import Access, Dependencies, Reading
from tidemill.api.servers.load import Loads
from tidemill.api.view.sqlite import Database
from tidemill.api.view.view import View
from tidemill.api.webhooks import Webhooks
from tidemill.configuration.settings import Settings
from tidemill.kafka import producer
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.ports import Clock, Edge, LogRecord
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import Role
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.webhooks.addresses import networks
from tidemill.schemas.webhooks.messages import Attempt, Delivery, Due, State, decode_event, delivery_id
from tidemill.sealing.vault import Vault
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.sealing.wrapping import FileWrapper, new_key_text
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.owner import Origin, StoreOwner

NOW = 1_800_000_000
PROJECTS = {"key-of-p": "p", "key-of-q": "q"}
ADMIN = "key-of-admin"
"""The key of the settings, an operator's."""
READER = "key-of-reader"
"""Reads the project `p`."""


class ListLog:
    """A log in memory; the view folds its claims, and the catalog its entries. `away` makes it unavailable."""

    def __init__(self, view: View, catalog: Catalog) -> None:
        self.catalog = catalog
        self.records: list[tuple[str, str, bytes | None]] = []
        self.headers: list[tuple[str, dict[str, bytes]]] = []
        """The topic and headers of each record."""
        self.trail: list[bytes] = []
        """Records of the audit trail."""
        self.away = False
        self.identity = "cluster/files"
        self.refused: set[str] = set()
        """Topics that are unavailable."""
        self.record_bytes_max = RECORD_BYTES_MAX
        self._view = view
        self.unread: list[tuple[str, str, bytes | None]] = []
        """Records of other processes that the view has not folded yet."""
        self.webhooks: Webhooks | None = None
        """Gets the end of each delivery that a test asks for, as if the receiver had answered at once."""

    def _deliver(self, value: bytes) -> None:
        due = decode_event(value)
        if isinstance(due, Due):
            made_id = delivery_id(due.endpoint_id, due.event.id)
            attempt = Attempt(at=NOW, seconds=0.1, status_code=204)
            found = Delivery(
                id=made_id, project=due.project, endpoint_id=due.endpoint_id, event=due.event, is_test=due.is_test,
                state=State.SUCCEEDED, created_at=NOW, expires_at=NOW, ended_at=NOW, attempts=1, last=attempt,
            )  # fmt: skip
            self.webhooks.deliveries.apply(made_id, codec.encode(found))
            self.webhooks.changes.notify(made_id)

    async def send(self, topic, key, value, *, headers=()) -> int:
        """Append a record."""
        if self.away or topic in self.refused:
            raise LogUnavailable
        if len(value or b"") + RECORD_BYTES_EXTRA > self.record_bytes_max:
            raise producer.too_large(topic, key, value)
        if topic == topics.AUDIT.name:
            self.trail.append(value)
            return len(self.trail) - 1
        self.records.append((topic, key, value))
        self.headers.append((topic, dict(headers)))
        if topic == topics.CATALOG.name:
            self.catalog.apply(key, value, len(self.records) - 1)
        if topic == topics.EVENTS.name and self.webhooks is not None:
            self._deliver(value)
        if topic == topics.CLAIMS.name:
            self._view.fold(topic, [(key, value, len(self.records) - 1)])
        return len(self.records) - 1

    async def origin(self) -> Origin:
        """The log as the owner of a store."""
        if self.away:
            raise LogUnavailable
        return Origin(self.identity, sum(topic == topics.FILES.name for topic, *_ in self.records))

    async def catch_up(self, *names: str) -> None:
        """Fold the records of other processes of these topics; fails while the log is away."""
        if self.away:
            raise LogUnavailable
        read = [record for record in self.unread if record[0] in names]
        self.unread = [record for record in self.unread if record[0] not in names]
        for topic, key, value in read:
            self.records.append((topic, key, value))
            self._view.fold(topic, [(key, value, len(self.records) - 1)])


class ListHistory:
    """Records of topics, set by hand: an offset is a place in a list."""

    def __init__(self) -> None:
        self.topics: dict[str, list[LogRecord]] = {}

    async def entries(self, topic: str, start: Edge, end: Edge | None) -> AsyncGenerator[LogRecord, None]:
        """The records of a topic from edge to edge."""
        for offset, entry in enumerate(self.topics.get(topic, [])):
            if _is_from(start, offset, entry) and (end is None or not _is_from(end, offset, entry)):
                yield entry


def _is_from(edge: Edge, offset: int, entry: LogRecord) -> bool:
    return offset >= edge.offset if edge.offset is not None else entry.at_ms >= edge.at_ms


class ManualClock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        """Its time in seconds."""
        return self.now


@asynccontextmanager
async def open_dependencies(
    folder: Path, clock: Clock = lambda: NOW, settings: Settings | None = None
) -> AsyncIterator[Dependencies]:
    """Dependencies, closed at the end; the projects are `p` and `q`."""
    view = View(Database(folder / "view"), clock, VERIFIER)
    store = DirectoryStore(folder / "store")
    fixed = {
        access.digest(key): Principal(project=project, role=Role.WRITE, key_id=key)
        for key, project in PROJECTS.items()
    }
    fixed[access.digest(READER)] = Principal(project="p", role=Role.READ, key_id=READER)
    fixed[access.digest(ADMIN)] = Principal(project="default", role=Role.OPERATOR)
    settings = settings or Settings()
    catalog = fixed_catalog(settings.servers, settings.models)
    log = ListLog(view, catalog)
    keys = Keys(fixed, view.keyring, clock)
    people = None if settings.openid is None else People(settings.openid)
    sessions = Sessions(keys, SIGNER, VERIFIER, view.audit.has_ended, clock, people=people)
    provider = None if settings.openid is None else Provider(settings.openid, clock)
    owner = StoreOwner(store, log.origin, view.orphans.outer_keys)
    await owner.check(marks=False)
    yield Dependencies(
        settings=settings, catalog=catalog,
        access=Access(keys=keys, sessions=sessions, provider=provider, people=people), log=log,
        history=ListHistory(), store=store, vault=Vault(None), signer=SIGNER, view=view, clock=clock,
        reading=Reading(lambda: True, log.catch_up, owner),
        webhooks=_webhooks(folder, log, settings, clock),
        loads=Loads(clock, lambda: catalog.contents.serving.servers, view.feed.publish_load, monotonic=clock),
    )  # fmt: skip
    view.close()
    await store.close()


def _webhooks(folder: Path, log: ListLog, settings: Settings, clock: Clock) -> Webhooks:
    (folder / "encryption_keys").write_text(new_key_text())
    secrets = WebhookSecrets(FileWrapper(folder / "encryption_keys"))
    log.webhooks = Webhooks(log, secrets, networks(settings.webhook_allow), clock)
    return log.webhooks


def batch_of(batch_id: str, **fields: Any) -> Batch:
    """A batch of the file `f`, which is in progress for a day from `NOW` on; with other fields."""
    usual = {
        "endpoint": "/v1/embeddings", "input_file_id": "f", "completion_window": "24h",
        "status": Status.IN_PROGRESS, "created_at": NOW, "expires_at": NOW + 86_400,
    }  # fmt: skip
    return Batch(id=batch_id, **usual | fields)


def with_settings(deps: Dependencies, settings: Settings) -> Dependencies:
    """The same with other settings, and their servers and models."""
    catalog = fixed_catalog(settings.servers, settings.models)
    assert isinstance(deps.log, ListLog)
    deps.log.catalog = catalog
    return replace(deps, settings=settings, catalog=catalog)


def client_of(
    deps: Dependencies, key: str | None = "key-of-p", *, base: str = "http://api/v1", **headers: str
) -> httpx.AsyncClient:
    """A client of an app on these dependencies, with a key and other headers; by default as the project `p`."""
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(deps)), base_url=base, headers=headers)


@asynccontextmanager
async def open_client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app on new dependencies, as the project `p`."""
    async with open_dependencies(folder) as deps, client_of(deps) as client:
        yield client


def fault(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, param and code of an error."""
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


def commands(deps: Dependencies) -> list[BatchCreated]:
    """All create commands."""
    sent = (codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name)
    return [command for command in sent if isinstance(command, BatchCreated)]
