"""The backends of a model as the settings name them."""

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
from tidemill.schemas.ports import Clock, Steady


def fleet(model: Model, clock: Clock) -> BackendPool:
    """A model's backends, each with a limit of its own; none may have more calls than the model.

    Args:
        model: Its settings.
        clock: Unix time, which decides on the hour of the day.
    """
    of_all = _bucket(model.tokens_per_minute)
    return BackendPool(
        [
            Backend(
                backend.base,
                ConcurrencyLimit(model.max_in_flight, share=backend.share),
                _headers(backend.api_key),
                ceiling=_ceiling(backend, clock),
                drain=backend.drain,
                spare=_spare(backend),
                pressure=LoadFeedback(yields=backend.spare is not None),
                buckets=_bucket(backend.tokens_per_minute) + of_all,
            )
            for backend in model.backends
        ]
    )


def lookouts(
    model: Model, fleet: BackendPool, *, getter: Getter, steady: Steady, told: Callable[[], None]
) -> list[MetricsPoller]:
    """Who asks the backends how much they have to do; see `MetricsPoller`.

    A key goes only to where the backend itself is, and not to another address that may be named for its metrics.
    """
    return [
        MetricsPoller(
            backend,
            url,
            _headers(named.api_key if origin(url) == origin(named.base) else None),
            getter=getter,
            steady=steady,
            told=told,
        )
        for named, backend in zip(model.backends, fleet.backends, strict=True)
        if (url := named.metrics_url) is not None and not named.drain
    ]


def authorities(models: Iterable[Model]) -> dict[Origin, list[Path]]:
    """Whom to trust where: the files of all backends of an origin."""
    files: dict[Origin, list[Path]] = {}
    for backend in (backend for model in models for backend in model.backends):
        if backend.ca_file is None:
            continue
        for place in {origin(backend.base), origin(backend.metrics_url or backend.base)}:
            known = files.setdefault(place, [])
            if backend.ca_file not in known:
                known.append(backend.ca_file)
    return files


def ceiling(ranges: Sequence[Hours]) -> Callable[[float], int | None]:
    """Makes the rule of a schedule: calls in flight at a Unix time; None where no range says anything.

    Where ranges overlap, the smallest number counts. A range may go over midnight. The hours are those of UTC.
    """

    def at(now: float) -> int | None:
        minute = int(now // 60) % 1440
        day = datetime.fromtimestamp(now, UTC).isoweekday()
        return min((one.max_in_flight for one in ranges if _covers(one, minute, day)), default=None)

    return at


def _ceiling(backend: Settings, clock: Clock) -> Callable[[], int | None] | None:
    # It is asked for with each call, and what day of the week it is takes its time.
    if not backend.hours:
        return None
    at = ceiling(backend.hours)
    return lambda: at(clock())


def _bucket(tokens_per_minute: int | None) -> tuple[TokenBucket, ...]:
    return () if tokens_per_minute is None else (TokenBucket(tokens_per_minute),)


def _spare(backend: Settings) -> Headroom | None:
    spare = backend.spare
    return None if spare is None else Headroom(spare.requests_max, spare.calls_min)


def _headers(key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return headers


def _covers(one: Hours, minute: int, day: int) -> bool:
    """Whether a range covers a minute of a day; what goes over midnight belongs to the day on which it began."""
    start, end = one.start, one.end
    if start < end:
        return start <= minute < end and day in one.days
    before = 7 if day == 1 else day - 1
    return (minute >= start and day in one.days) or (minute < end and before in one.days)
