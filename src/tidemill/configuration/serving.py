"""Finds which servers serve each model, and contradictions among the settings of servers and models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tidemill.configuration.misconfigured import nearest
from tidemill.configuration.servers import Model, Server, Serving
from tidemill.schemas.log import topics


class Contradiction(ValueError):
    """A server or a model contradicts others; the text begins with the path of the setting."""

    def __init__(self, kind: str, name: str, text: str) -> None:
        super().__init__(f"{kind}.{name}{text}")
        self.kind, self.name = kind, name
        """`servers` or `models`, and the name of the one that can be left out."""


def serving(
    servers: Mapping[str, Server], models: Mapping[str, Model], faults: list[Contradiction] | None = None
) -> Serving:
    """Name the servers of the short form after their addresses, and find those of each model.

    Args:
        servers: By name.
        models: By name; in the long form, if there are `faults`.
        faults: Collects contradictions, whose servers and models are left out; without it, the first one raises.

    Raises:
        Contradiction: A model names a server that does not exist, two settings of one server differ, or two models
            have one name, or topics that Kafka takes for the same.
    """
    found = _Found()
    for name, server in servers.items():
        with _left_out(faults):
            found.add(name, server)
    named = dict(found.servers)
    kept: dict[str, Model] = {}
    by_model = {}
    for name, model in models.items():
        with _left_out(faults):
            by_model[name] = found.of_model(name, model, named)
            kept[name] = model
    aliases: dict[str, str] = {}
    names = dict.fromkeys(kept, "a model")
    users: dict[str, str] = {}
    for name, model in list(kept.items()):
        try:
            _check_topics(name, users)
            _check_aliases(name, model, names)
        except Contradiction as error:
            if faults is None:
                raise
            faults.append(error)
            del kept[name], by_model[name], names[name]
        else:
            users[topics.place(name)] = name
            names |= dict.fromkeys(model.aliases, f"models.{name}")
            aliases |= dict.fromkeys(model.aliases, name)
    return Serving(servers=found.servers, models=kept, by_model=by_model, aliases=aliases)


@contextmanager
def _left_out(faults: list[Contradiction] | None) -> Iterator[None]:
    """Collect a contradiction in `faults` and go on; without a list, let it raise."""
    try:
        yield
    except Contradiction as error:
        if faults is None:
            raise
        faults.append(error)


class _Found:
    """The servers so far."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] = {}
        self._names: dict[tuple[str, str | None], str] = {}
        """Names of servers, by address and key."""
        self._places: dict[str, str] = {}
        """The path of the setting that defines each server."""
        self._first: dict[tuple[str | None, int | None], str] = {}
        """The first server of each host and port."""

    def add(self, name: str, server: Server) -> None:
        """Add a server with a name."""
        if (other := self._names.get(server.identity, name)) != name:
            raise Contradiction("servers", name, f": it has the address and the key of servers.{other}")
        self._check_connections(server, "servers", name, "")
        self._set(name, server, f"servers.{name}")

    def of_model(self, name: str, model: Model, named: Mapping[str, Server]) -> tuple[str, ...]:
        """The names of a model's servers; adds those of the short form."""
        for server in model.servers:
            if server not in named:
                near = f", but {one}" if (one := nearest(server, named)) else ""
                raise Contradiction("models", name, f".servers: there is no server {server}{near}")
        short = (self._short(name, f".backends.{number}", server) for number, server in enumerate(model.backends))
        return (*model.servers, *short)

    def _short(self, model: str, here: str, server: Server) -> str:
        name = self._names.get(server.identity, server.place)
        if name == server.place and self.servers.get(name, server).identity != server.identity:
            # Another server has this address, with another key.
            name = f"{name}@{server.api_key_env or 'no-key'}"
        if self.servers.get(name, server) != server:
            raise Contradiction(
                "models",
                model,
                f"{here}: {self._places[name]} has the same address and key, and other settings; "
                "set the server once, in [servers.name], and name it in servers",
            )
        if name not in self.servers:
            self._check_connections(server, "models", model, here)
            self._set(name, server, f"models.{model}{here}")
        return name

    def _set(self, name: str, server: Server, place: str) -> None:
        self.servers[name] = server
        self._names[server.identity] = name
        self._places[name] = place
        self._first.setdefault((server.url.host, server.url.port), name)

    def _check_connections(self, server: Server, kind: str, name: str, here: str) -> None:
        """Check that servers on one host and port, which share connections, agree on certificate and proxy."""
        if (first := self._first.get((server.url.host, server.url.port))) is None:
            return
        for setting in ("client_cert_file", "proxy"):
            if getattr(self.servers[first], setting) != getattr(server, setting):
                there = self._places[first]
                raise Contradiction(kind, name, f"{here}: {there} has its host and port, and another {setting}")


def _check_topics(name: str, users: Mapping[str, str]) -> None:
    if (other := users.get(topics.place(name))) is not None:
        what = f"Kafka cannot have its topics besides those of models.{other}"
        raise Contradiction("models", name, f": {what}, since it takes '.' and '_' for the same")


def _check_aliases(name: str, model: Model, names: Mapping[str, str]) -> None:
    own: set[str] = set()
    for alias in model.aliases:
        if alias in names or alias in own:
            whose = names.get(alias, f"models.{name}")
            raise Contradiction("models", name, f".aliases: {alias} is the name of {whose} already")
        own.add(alias)
