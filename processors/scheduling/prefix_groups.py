"""The waiting lines of a batch, grouped by the prefix of their prompts if the settings ask for it.

An inference server caches its work on the prefixes of recent prompts, so lines with a cached prefix are cheap for
it. They form a *group*, which is called as a whole: once the group is *opened*, its lines are reserved for one
backend, behind those of groups opened earlier. A backend has at most half as many lines again reserved as it has
calls in flight; then no further group is opened for it.

If the backend was not called with the prefix lately, the first line of the group is a *primer*: it is called next,
and the rest of the group waits until its call has ended. Lines of groups opened earlier keep the backend busy
meanwhile.

Groups are opened in the order of their first lines, and a group takes lines only up to `SPAN_LINES` after its
first one. So fewer lines than that overtake a line, and as many again if backends prefer groups.
"""

import functools
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from tidemill.bounded_dict import BoundedDict
from tidemill.configuration.servers import Model
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.lines import Line
from tidemill.schemas.endpoints import ENDPOINTS

SPAN_LINES: Final = 16_384
"""As many as the window of a partition holds."""
AHEAD_LINES_MIN: Final = 8
"""Lines reserved for a backend even if it has fewer calls in flight."""
CANDIDATES_MAX: Final = 32
"""Groups that are searched for one that prefers a backend."""
WARM_PREFIXES_MAX: Final = 16
"""Prefixes that a backend is assumed to have cached; a needless primer costs next to nothing."""
PRIMER_SECONDS_MAX: Final = 2.0
"""The longest that a group waits for its primer."""
STRANDED_TAKES: Final = 1_024
"""Once a backend has taken none of this many lines, the others also take those reserved for it."""

T = TypeVar("T")


class PrefixBackend(Protocol):
    """A backend."""

    in_flight: int
    """Calls of the model."""

    @property
    def name(self) -> str:
        """Its name, which identifies it in all processes."""
        ...


class Prefixes(Generic[T]):
    """The prefixes of a model's lines, and the backends that were called with each lately."""

    def __init__(self, key: Callable[[T], int | None], places: Sequence[PrefixBackend]) -> None:
        """Start without calls of these backends, at least one; `key` returns the prefix of a line, or None."""
        self.key = key
        self.places: Sequence[PrefixBackend] = ()
        self._warm: dict[str, BoundedDict[int, None]] = {}
        self.follow(places)

    def follow(self, places: Sequence[PrefixBackend]) -> None:
        """Replace the backends by these; without any, lines wait at the former ones."""
        if places and places != self.places:
            self.places = places
            self._warm = {
                place.name: self._warm.get(place.name, BoundedDict(WARM_PREFIXES_MAX)) for place in places
            }

    def has(self, place: PrefixBackend, key: int) -> bool:
        """Whether the backend was called with a prefix lately."""
        return key in self._warm[place.name]

    def note(self, place: PrefixBackend, key: int) -> None:
        """Note that the backend is called with a prefix."""
        self._warm[place.name][key] = None

    def owner(self, key: int) -> PrefixBackend:
        """The backend that all processes prefer for a prefix (rendezvous hashing)."""
        return max(self.places, key=lambda place: zlib.crc32(place.name.encode(), key))


def prefix_key(text: bytes, url: str, size: int) -> int | None:
    """A checksum of the first `size` bytes of a line's prompt, equal in all processes.

    The prompt follows the first `"messages":`, `"prompt":` and so on of the line, by its endpoint; nothing is
    parsed. If the body has such a name before its prompt, in a tool for example, the prefix is taken from there.
    That works as well for similar lines, and only the order of lines depends on it.

    Returns:
        None if the line has no prompt, or fewer bytes from there to its end.
    """
    if url not in ENDPOINTS or (found := _start(url).search(text)) is None:
        return None
    begin = found.end()
    return None if len(text) - begin < size else zlib.crc32(text[begin : begin + size])


@functools.cache
def _start(url: str) -> re.Pattern[bytes]:
    names = "|".join(re.escape(next(iter(form))) for form in ENDPOINTS[url].forms)
    return re.compile(rb'"(?:%s)"\s*:\s*' % names.encode())


def prefixes(model: Model, pool: BackendPool) -> Prefixes[Line] | None:
    """The prefixes of a model's lines; None if the settings do not ask for groups."""
    if (size := model.prefix_bytes) is None:
        return None
    return Prefixes(lambda line: prefix_key(line.text, line.head.url, size), pool.called)


@dataclass(slots=True, eq=False)
class _Group(Generic[T]):
    key: int | None
    first: int
    """The number of its first line, counted over the batch."""
    lines: list[T] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Stock(Generic[T]):
    """The lines reserved for a backend."""

    place: PrefixBackend
    ready: deque[T] = field(default_factory=deque)
    held: int = 0
    """Lines that wait for a primer."""
    taken_at: int = 0
    """The number of the last line that the backend took."""

    @property
    def lines(self) -> int:
        return len(self.ready) + self.held


@dataclass(slots=True, eq=False)
class _Held(Generic[T]):
    stock: _Stock[T]
    key: int
    lines: list[T]


class PrefixGroups(Generic[T]):
    """The lines of one batch; its length counts those that may be taken."""

    def __init__(self, prefixes: Prefixes[T] | None = None, *, span_lines: int = SPAN_LINES) -> None:
        """Start empty; without `prefixes` lines keep their order."""
        self._prefixes = prefixes
        self._span = span_lines
        self._first: deque[T] = deque()
        """All lines, if they keep their order."""
        self._line_up: deque[_Group[T]] = deque()
        """Groups that are not open, in the order of their first lines."""
        self._latest: dict[int | None, _Group[T]] = {}
        """By prefix, the group in `_line_up` that accepts more lines."""
        self._stocks = [_Stock[T](place) for place in prefixes.places] if prefixes else []
        self._ready = 0
        """Lines in all stocks that may be taken."""
        self._held: dict[T, _Held[T]] = {}
        """Waiting lines by their primer."""
        self._came = 0
        self._takes = 0

    def __len__(self) -> int:
        return len(self._first) + self._ready

    @property
    def lines(self) -> int:
        """All lines, those included that may not be taken yet."""
        held = sum(stock.held for stock in self._stocks)
        return len(self) + held + sum(len(group.lines) for group in self._line_up)

    @property
    def waits(self) -> bool:
        """Whether lines wait for a primer."""
        return bool(self._held)

    def add(self, lines: Iterable[T]) -> None:
        """Add lines behind the others."""
        if (prefixes := self._prefixes) is None:
            self._first.extend(lines)
            return
        for line in lines:
            key = prefixes.key(line)
            group = self._latest.get(key)
            if group is None or self._came - group.first >= self._span:
                group = self._latest[key] = _Group(key, self._came)
                self._line_up.append(group)
            group.lines.append(line)
            self._came += 1
        self._restock()

    def take(self, at: PrefixBackend | None, chance: float | None = None) -> T:
        """The next line for the backend `at`, which is needed only with prefixes; there must be a line.

        With `chance`, 0 <= chance < 1 at random, it is any line, also of a group that is not open.
        """
        if self._first:
            return _taken(self._first, chance)
        if chance is not None and self._line_up:
            return self._picked(chance)
        self._takes += 1
        stock = self._source(at)
        self._ready -= 1
        line = _taken(stock.ready, chance)
        self._restock()
        return line

    def take_along(self, wants: Callable[[T], bool], span: int) -> int:
        """Take the wanted ones of the next `span` lines; returns their number. The lines must not be in groups."""
        return take_wanted(self._first, wants, span)

    def is_primer(self, line: T) -> bool:
        """Whether other lines wait for the call of this one."""
        return line in self._held

    def primed(self, line: T) -> None:
        """Release the group of a primer whose call has ended or takes too long."""
        assert self._prefixes is not None, "there are no primers without it"
        held = self._held.pop(line)
        held.stock.held -= len(held.lines)
        held.stock.ready.extend(held.lines)
        self._ready += len(held.lines)
        self._prefixes.note(held.stock.place, held.key)
        self._restock()

    def clear(self) -> list[T]:
        """Remove and return all lines, also those that wait for a primer."""
        lines = list(self._first)
        for stock in self._stocks:
            lines += stock.ready
            stock.ready.clear()
            stock.held = 0
        for held in self._held.values():
            lines += held.lines
        for group in self._line_up:
            lines += group.lines
        self._first.clear()
        self._held.clear()
        self._line_up.clear()
        self._latest.clear()
        self._ready = 0
        return lines

    def follow(self) -> None:
        """Keep a stock for each current backend; the lines of a removed one go to another."""
        if self._prefixes is None:
            return
        places = self._prefixes.places
        known = {stock.place: stock for stock in self._stocks}
        self._stocks = [known.get(place) or _Stock[T](place, taken_at=self._takes) for place in places]
        for gone in (stock for stock in known.values() if stock not in self._stocks):
            heir = min(self._stocks, key=lambda stock: stock.lines)
            heir.ready.extend(gone.ready)
            heir.held += gone.held
            for held in self._held.values():
                if held.stock is gone:
                    held.stock = heir
        self._restock()

    def _picked(self, chance: float) -> T:
        place = chance * len(self._line_up)
        index = int(place)
        group = self._line_up[index]
        line = group.lines.pop(int((place - index) * len(group.lines)))
        if not group.lines:
            self._close(index)
        return line

    def _close(self, index: int) -> _Group[T]:
        """Remove a group from those that are not open; it accepts no more lines."""
        group = self._line_up[index]
        del self._line_up[index]
        if self._latest.get(group.key) is group:
            del self._latest[group.key]
        return group

    def _source(self, at: PrefixBackend | None) -> _Stock[T]:
        """The stock that a backend takes from: its own, else that of another."""
        stocks = self._stocks
        if len(stocks) == 1:
            return stocks[0]
        own = next((stock for stock in stocks if stock.place is at), None)
        if own is None:
            return max(stocks, key=lambda stock: len(stock.ready))
        own.taken_at = self._takes
        for stock in stocks:
            if stock.ready and self._is_stranded(stock):
                return stock
        return own if own.ready else max(stocks, key=lambda stock: len(stock.ready))

    def _is_stranded(self, stock: _Stock[T]) -> bool:
        return self._takes - stock.taken_at > STRANDED_TAKES

    def _restock(self) -> None:
        """Open as many groups as the backends need."""
        while self._line_up and self._stocks:
            stock = min(self._stocks, key=lambda stock: (self._is_stranded(stock), stock.lines))
            in_flight = stock.place.in_flight
            if stock.lines >= max(AHEAD_LINES_MIN, in_flight + in_flight // 2):
                return
            self._open(self._chosen(stock.place), stock)

    def _chosen(self, place: PrefixBackend) -> _Group[T]:
        """Remove and return the next group for a backend: one that prefers it, else the first."""
        assert self._prefixes is not None, "there are no groups without it"
        index = 0
        if len(self._stocks) > 1:
            until = self._line_up[0].first + self._span
            for number, group in enumerate(islice(self._line_up, CANDIDATES_MAX)):
                if group.first < until and group.key is not None and self._prefixes.owner(group.key) is place:
                    index = number
                    break
        return self._close(index)

    def _open(self, group: _Group[T], stock: _Stock[T]) -> None:
        assert self._prefixes is not None, "there are no groups without it"
        key, lines = group.key, group.lines
        if key is not None:
            primed = next((held for held in self._held.values() if held.stock is stock and held.key == key), None)
            if primed is not None:
                primed.lines += lines
                stock.held += len(lines)
                return
            if len(lines) > 1 and not self._prefixes.has(stock.place, key):
                primer, *rest = lines
                self._held[primer] = _Held(stock, key, rest)
                stock.held += len(rest)
                stock.ready.appendleft(primer)
                self._ready += 1
                return
            self._prefixes.note(stock.place, key)
        stock.ready.extend(lines)
        self._ready += len(lines)


def take_wanted(lines: deque[T], wants: Callable[[T], bool], span: int) -> int:
    """Remove the wanted ones of the first `span` lines; returns their number."""
    looked = [lines.popleft() for _ in range(min(span, len(lines)))]
    kept = [line for line in looked if not wants(line)]
    lines.extendleft(reversed(kept))
    return len(looked) - len(kept)


def _taken(lines: deque[T], chance: float | None) -> T:
    if chance is None:
        return lines.popleft()
    index = int(chance * len(lines))
    line = lines[index]
    del lines[index]
    return line
