"""Creates the servers of `servers.py`, and applies their settings."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tidemill.configuration.servers import IN_FLIGHT_MAX, Hours, Model, Serving
from tidemill.configuration.servers import Server as Settings
from tidemill.processors.backends.metrics_poller import MetricsPoller
from tidemill.processors.backends.server import CallOptions, Server
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.http.client import HttpUpstream, Origin, Trust, origin
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.schemas.ports import Clock, Monotonic
from tidemill.schemas.resources.waiting import Reason

UNACKNOWLEDGED_DIVISOR: Final = 4
"""By default, the results that hold no seat are 1/`UNACKNOWLEDGED_DIVISOR` of the calls."""
_PLAIN: Final = {"content-type": "application/json", "accept": "application/json"}


class Target(NamedTuple):
    """Where a server is, and its settings."""

    settings: Settings
    address: str | None = None
    """One of the addresses of its host name, if these are discovered."""

    @property
    def base(self) -> str:
        """Its base URL."""
        return self._at(self.settings.base)

    @property
    def metrics_url(self) -> str | None:
        """The URL of its metrics page."""
        return None if (url := self.settings.metrics_url) is None else self._at(url)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each call."""
        headers = {**_PLAIN, **self.settings.headers, **self._host(self.settings.base)}
        if key := self.settings.api_key:
            headers["authorization"] = f"Bearer {key}"
        return headers

    @property
    def metrics_headers(self) -> dict[str, str]:
        """The headers of a request to its metrics page; its key and its headers go only to its own origin."""
        url = self.settings.metrics_url or self.settings.base
        headers = self.headers if origin(url) == origin(self.settings.base) else _PLAIN
        return {**headers, **self._host(url)}

    def _at(self, url: str) -> str:
        if self.address is None:
            return url
        parts = urlsplit(url)
        host = f"[{self.address}]" if ":" in self.address else self.address
        return parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}").geturl()

    def _host(self, url: str) -> dict[str, str]:
        return {} if self.address is None else {"host": urlsplit(url).netloc}


def made(name: str, target: Target, calls_max: int) -> Server:
    """A new server; `configure` applies its settings."""
    return Server(name, target.base, ConcurrencyLimit(calls_max), calls_max=calls_max)


def configure(server: Server, target: Target, before: Settings | None, clock: Clock, now: float) -> None:
    """Apply settings to a server; its limit, breaker and bucket keep what they have learnt.

    Args:
        server: The server, already resized to these settings.
        target: Its settings.
        before: The settings that it had; None for a new server.
        clock: Unix time, for the schedule.
        now: The event loop's time.
    """
    settings = target.settings
    server.limit.configure(server.calls_max, settings.share)
    server.options = CallOptions(
        target.headers,
        priority_by_deadline=settings.priority_by_deadline,
        deadline_header=settings.deadline_header,
    )
    server.scheduled_limit = _scheduled_limit(settings, clock)
    server.drain = Reason.DRAINED if settings.drain else Reason.ACCESS if settings.lack else None
    server.bucket = bucket(server.bucket, settings.tokens_per_minute, server.part, now)
    if before is None or settings.headroom != before.headroom:
        server.headroom = _headroom(settings)


def _headroom(settings: Settings) -> Headroom | None:
    if not settings.headroom:
        return None
    return Headroom(None if settings.headroom is True else settings.headroom.ttft_ms / 1000)


def poller(server: Server, target: Target, client: HttpUpstream, monotonic: Monotonic) -> MetricsPoller | None:
    """The poller of its metrics page; None if it has none, or gets no calls."""
    if (url := target.metrics_url) is None or server.drain:
        return None
    return MetricsPoller(server, url, target.metrics_headers, client=client, monotonic=monotonic)


def calls_max(settings: Settings, models: Iterable[Model]) -> int:
    """Calls that all processes together may have in flight at a server of these models."""
    own = [model.max_in_flight for model in models if model.max_in_flight is not None]
    return settings.max_in_flight or max(own, default=IN_FLIGHT_MAX)


def unacknowledged_max(settings: Settings, calls_max: int) -> int:
    """Results of a server that hold no seat until the log acknowledges them, of all processes together."""
    own = settings.unacknowledged_max
    return max(1, calls_max // UNACKNOWLEDGED_DIVISOR) if own is None else own


def bucket(
    before: TokenBucket | None, tokens_per_minute: int | None, part: float, now: float
) -> TokenBucket | None:
    """The bucket of a rate: the one from before, if there is one, else a new one with this process's part."""
    if tokens_per_minute is None:
        return None
    if before is None:
        before = TokenBucket(tokens_per_minute)
        before.set_part(part, now)
    else:
        before.set_rate(tokens_per_minute, now)
    return before


def trusts(serving: Serving) -> dict[Origin, Trust]:
    """How to connect, by origin: the authorities to trust (those of all its servers), the certificate, the proxy.

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
        proxy = None if settings.proxy is None else origin(str(settings.proxy))
        own = Trust(files, client, proxy)
        for place in {origin(settings.base), origin(settings.metrics_url or settings.base)}:
            known = found.setdefault(place, own)
            authorities = tuple(dict.fromkeys((*known.authorities, *files)))
            found[place] = Trust(authorities, known.client or client, proxy)
    return found


def schedule(ranges: Sequence[Hours]) -> Callable[[float], int | None]:
    """A function from Unix time to the calls that a schedule allows in flight; None outside all ranges.

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


def _covers(one: Hours, minute: int, day: int) -> bool:
    """Whether a range covers a minute of a day; a range over midnight belongs to the day on which it began."""
    start, end = one.start, one.end
    if start < end:
        return start <= minute < end and day in one.days
    before = 7 if day == 1 else day - 1
    return (minute >= start and day in one.days) or (minute < end and before in one.days)
