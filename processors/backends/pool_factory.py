"""Makes the servers of a model, and their metrics pollers, from the settings."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tidemill.configuration.schedule import Hours
from tidemill.configuration.servers import Backend as Settings
from tidemill.configuration.servers import Model
from tidemill.processors.backends.metrics_poller import Getter, MetricsPoller
from tidemill.processors.backends.pool import Backend, BackendPool
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.http.client import Origin, origin
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.schemas.ports import Clock, Monotonic


def backend_pool(model: Model, clock: Clock) -> BackendPool:
    """The servers of a model, each with its own concurrency limit; none may have more calls than the model.

    Args:
        model: Its settings.
        clock: Unix time, for the schedules.
    """
    of_all = _bucket(model.tokens_per_minute)
    return BackendPool(
        [
            Backend(
                backend.base,
                ConcurrencyLimit(model.max_in_flight, share=backend.share),
                _headers(backend.api_key),
                scheduled_limit=_scheduled_limit(backend, clock),
                drain=backend.drain,
                headroom=_headroom(backend),
                load_feedback=LoadFeedback(yields=backend.spare is not None),
                buckets=_bucket(backend.tokens_per_minute) + of_all,
            )
            for backend in model.backends
        ]
    )


def metrics_pollers(
    model: Model, pool: BackendPool, *, getter: Getter, monotonic: Monotonic, on_reading: Callable[[], None]
) -> list[MetricsPoller]:
    """The pollers of all servers that have a metrics page.

    The key of a server goes only to the origin of the server itself, and not to another one of its metrics page.
    """
    return [
        MetricsPoller(
            backend,
            url,
            _headers(named.api_key if origin(url) == origin(named.base) else None),
            getter=getter,
            monotonic=monotonic,
            on_reading=on_reading,
        )
        for named, backend in zip(model.backends, pool.backends, strict=True)
        if (url := named.metrics_url) is not None and not named.drain
    ]


def authorities(models: Iterable[Model]) -> dict[Origin, list[Path]]:
    """The certificate authorities to trust, by origin: PEM files of all its servers."""
    files: dict[Origin, list[Path]] = {}
    for backend in (backend for model in models for backend in model.backends):
        if backend.ca_file is None:
            continue
        for place in {origin(backend.base), origin(backend.metrics_url or backend.base)}:
            known = files.setdefault(place, [])
            if backend.ca_file not in known:
                known.append(backend.ca_file)
    return files


def schedule(ranges: Sequence[Hours]) -> Callable[[float], int | None]:
    """A function of Unix time that gives the calls in flight which a schedule allows; None outside all ranges.

    Where ranges overlap, the smallest number counts. A range may go over midnight. Hours are in UTC.
    """

    def at(now: float) -> int | None:
        minute = int(now // 60) % 1440
        day = datetime.fromtimestamp(now, UTC).isoweekday()
        return min((one.max_in_flight for one in ranges if _covers(one, minute, day)), default=None)

    return at


def _scheduled_limit(backend: Settings, clock: Clock) -> Callable[[], int | None] | None:
    # The limit is looked up for each call, and working out the day of the week takes time.
    if not backend.hours:
        return None
    at = schedule(backend.hours)
    return lambda: at(clock())


def _bucket(tokens_per_minute: int | None) -> tuple[TokenBucket, ...]:
    return () if tokens_per_minute is None else (TokenBucket(tokens_per_minute),)


def _headroom(backend: Settings) -> Headroom | None:
    spare = backend.spare
    return None if spare is None else Headroom(spare.requests_max, spare.calls_min)


def _headers(key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json"}
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
