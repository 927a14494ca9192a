"""The backends of a model as the settings name them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tidemill.configuration.servers import Backend as Settings
from tidemill.configuration.servers import Model
from tidemill.processors.backends import schedule
from tidemill.processors.backends.metrics_poller import Getter, MetricsPoller
from tidemill.processors.backends.pool import Backend, BackendPool
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.http_client import Origin, origin
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.processors.partitions.window import Line
from tidemill.processors.scheduling import prefix
from tidemill.processors.scheduling.prefix_groups import Prefixes
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


def prefixes(model: Model, fleet: BackendPool) -> Prefixes[Line] | None:
    """How lines begin, where they are to go by that; None where they go as they stand."""
    if (size := model.prefix_bytes) is None:
        return None
    called = [backend for backend in fleet.backends if not backend.drain]
    return Prefixes(lambda line: prefix.key(line.text, line.head.url, size), called or fleet.backends)


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


def _ceiling(backend: Settings, clock: Clock) -> Callable[[], int | None] | None:
    # It is asked for with each call, and what day of the week it is takes its time.
    if not backend.hours:
        return None
    at = schedule.ceiling(backend.hours)
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
