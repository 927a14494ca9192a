"""Makes the servers of a process, the pool of each model, and the metrics pollers, from the settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from tidemill.configuration.schedule import Hours
from tidemill.configuration.servers import IN_FLIGHT_MAX, Model, Serving
from tidemill.configuration.servers import Server as Settings
from tidemill.processors.backends.metrics_poller import Getter, MetricsPoller
from tidemill.processors.backends.pool import Backend, BackendPool
from tidemill.processors.backends.server import CallOptions, Parts, Server
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.http.client import Origin, Trust, origin
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.schemas.ports import Clock, Monotonic
from tidemill.schemas.resources.waiting import Reason

_PLAIN: Final = {"content-type": "application/json", "accept": "application/json"}


def servers(serving: Serving, models: Mapping[str, Model], clock: Clock) -> dict[str, Server]:
    """The servers by name, each once, whichever models it serves.

    Args:
        serving: All servers, and which of them serve each model.
        models: The settings of all models.
        clock: Unix time, for the schedules.
    """
    return {
        name: _server(name, settings, {model: models[model] for model in serving.models_of(name)}, clock)
        for name, settings in serving.servers.items()
    }


def _server(name: str, settings: Settings, models: Mapping[str, Model], clock: Clock) -> Server:
    own = [model.max_in_flight for model in models.values() if model.max_in_flight is not None]
    calls_max = settings.max_in_flight or max(own, default=IN_FLIGHT_MAX)
    headroom = settings.headroom
    return Server(
        name,
        settings.base,
        ConcurrencyLimit(calls_max, share=settings.share),
        calls_max,
        CallOptions(
            _headers(settings, settings.api_key),
            priority_by_deadline=settings.priority_by_deadline,
            deadline_header=settings.deadline_header,
        ),
        scheduled_limit=_scheduled_limit(settings, clock),
        drain=Reason.DRAINED if settings.drain else Reason.ACCESS if settings.lack else None,
        headroom=None if headroom is None else Headroom(headroom.requests_max, headroom.calls_min),
        load_feedback=LoadFeedback(yields=headroom is not None),
        bucket=_bucket(settings.tokens_per_minute),
        parts=Parts(models),
    )


def backend_pool(name: str, model: Model, named: Iterable[Server]) -> BackendPool:
    """The servers of a model.

    Args:
        name: The model's name.
        model: Its settings.
        named: Its servers.
    """
    own = _bucket(model.tokens_per_minute)
    return BackendPool(
        [
            Backend(server, buckets=tuple(bucket for bucket in (server.bucket, own) if bucket is not None))
            for server in named
        ],
        name,
        calls_max=model.max_in_flight,
        bucket=own,
        paused=model.paused,
    )


def metrics_pollers(
    serving: Serving, made: Mapping[str, Server], *, getter: Getter, monotonic: Monotonic
) -> list[MetricsPoller]:
    """The pollers of all servers that have a metrics page.

    The key and the headers of a server go only to its own origin, and not to another one of its metrics page.
    """
    return [
        MetricsPoller(made[name], url, _metrics_headers(settings, url), getter=getter, monotonic=monotonic)
        for name, settings in serving.servers.items()
        if (url := settings.metrics_url) is not None and name in made and not made[name].drain
    ]


def trusts(serving: Serving) -> dict[Origin, Trust]:
    """The authorities to trust and the certificate to show, by origin; the authorities of all its servers.

    Servers whose files are missing have none: they get no calls.
    """
    found: dict[Origin, Trust] = {}
    for settings in serving.servers.values():
        if settings.lack is not None:
            continue
        files = () if settings.ca_file is None else (settings.ca_file,)
        client = None
        if settings.client_cert_file is not None:
            client = settings.client_cert_file, settings.client_key_file
        own = Trust(files, client)
        for place in {origin(settings.base), origin(settings.metrics_url or settings.base)}:
            known = found.setdefault(place, own)
            found[place] = Trust(tuple(dict.fromkeys((*known.authorities, *files))), known.client or client)
    return found


def schedule(ranges: Sequence[Hours]) -> Callable[[float], int | None]:
    """A function of Unix time that gives the calls in flight which a schedule allows; None outside all ranges.

    Where ranges overlap, the smallest number counts. A range may go over midnight. Hours are in UTC.
    """

    def at(now: float) -> int | None:
        minute = int(now // 60) % 1440
        day = datetime.fromtimestamp(now, UTC).isoweekday()
        return min((one.max_in_flight for one in ranges if _covers(one, minute, day)), default=None)

    return at


def _scheduled_limit(settings: Settings, clock: Clock) -> Callable[[], int | None] | None:
    # The limit is looked up for each call, and working out the day of the week takes time.
    if not settings.hours:
        return None
    at = schedule(settings.hours)
    return lambda: at(clock())


def _bucket(tokens_per_minute: int | None) -> TokenBucket | None:
    return None if tokens_per_minute is None else TokenBucket(tokens_per_minute)


def _metrics_headers(settings: Settings, url: str) -> dict[str, str]:
    if origin(url) == origin(settings.base):
        return _headers(settings, settings.api_key)
    return dict(_PLAIN)


def _headers(settings: Settings, key: str | None) -> dict[str, str]:
    headers = {**_PLAIN, **settings.headers}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return headers


def _covers(one: Hours, minute: int, day: int) -> bool:
    """Whether a range covers a minute of a day; a range over midnight belongs to the day on which it began."""
    start, end = one.start, one.end
    if start < end:
        return start <= minute < end and day in one.days
    before = 7 if day == 1 else day - 1
    return (minute >= start and day in one.days) or (minute < end and before in one.days)
