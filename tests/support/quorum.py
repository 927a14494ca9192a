"""A Kafka cluster of several brokers on this machine, from the embedded broker's jars."""

import asyncio
import re
import shutil
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from support.brokers import OpenBroker
from support.cuts import Network

from tidemill.local.embedded import kraft

HEAP = "-Xmx256m"
SESSION_MS = 3_000
"""After this time the cluster notices a killed broker, and its partitions get other leaders."""


class Node(OpenBroker):
    """One of the brokers, which is also a controller.

    Args:
        folder: Folder of its records and logs.
        number: Its id, from 1.
        more: Settings beyond those of the embedded broker.
    """

    def __init__(self, folder: Path, number: int, more: Mapping[str, object] | None = None) -> None:
        super().__init__(folder)
        self.number = number
        self.peers: tuple[Node, ...] = (self,)
        self._more = dict(more or {})
        self._doors: dict[str, tuple[int, int]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(exist_ok=True)
        self._ports = kraft.keep_ports(self.folder / "ports")

    @property
    def voter(self) -> str:
        """Its entry in the list of controllers."""
        return f"{self.number}@{kraft.LOOPBACK}:{self._ports.controller}"

    def open_door(self, network: Network, process: str) -> None:
        """Open a listener for one process, which reaches it through a way that can be cut."""
        port = kraft.free_port()
        self._doors[process] = port, network.lay(process, self.name, port).port

    def door(self, process: str) -> str:
        """`host:port` of the listener for that process."""
        return f"{kraft.LOOPBACK}:{self._doors[process][1]}"

    @property
    def name(self) -> str:
        """Its name in a `Network`."""
        return f"broker-{self.number}"

    def command(self) -> list[str]:
        """The embedded broker's command, with a smaller heap."""
        return [HEAP if word.startswith("-Xmx") else word for word in super().command()]

    def _write_properties(self, name: str, records: str, *, clean: bool) -> str:
        super()._write_properties(name, records, clean=clean)
        copies = len(self.peers)
        in_sync = max(1, copies - 1)
        more = {
            "node.id": self.number,
            "controller.quorum.voters": ",".join(peer.voter for peer in self.peers),
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "broker.session.timeout.ms": SESSION_MS,
            "broker.heartbeat.interval.ms": SESSION_MS // kraft.HEARTBEATS_A_SESSION,
            **self._listeners(),
            **self._more,
        }
        self.add(name, more)
        return name

    def _listeners(self) -> dict[str, str]:
        """The settings of the listeners: names, ports, and advertised addresses."""
        assert self._ports is not None
        clients = f"{kraft.CLIENTS}://{kraft.LOOPBACK}:{self._ports.clients}"
        doors = {f"DOOR{number}": ports for number, ports in enumerate(self._doors.values())}
        own = [f"{name}://{kraft.LOOPBACK}:{port}" for name, (port, _) in doors.items()]
        told = [f"{name}://{kraft.LOOPBACK}:{port}" for name, (_, port) in doors.items()]
        kinds = (kraft.CLIENTS, "CONTROLLER", *doors)
        return {
            "listeners": ",".join([clients, f"CONTROLLER://{kraft.LOOPBACK}:{self._ports.controller}", *own]),
            "advertised.listeners": ",".join([clients, *told]),
            "listener.security.protocol.map": ",".join(f"{kind}:PLAINTEXT" for kind in kinds),
            "num.network.threads": "1",
        }

    async def _format(self) -> None:
        """Format the first broker's folder; the others get copies with their own ids."""
        first = self.peers[0]
        if first is self:
            await super()._format()
            return
        shutil.rmtree(self._records, ignore_errors=True)
        shutil.copytree(first._records, self._records)
        file = self._records / "meta.properties"
        directory = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        text = re.sub(r"(?m)^node\.id=.*$", f"node.id={self.number}", file.read_text())
        file.write_text(re.sub(r"(?m)^directory\.id=.*$", f"directory.id={directory}", text))


class Quorum:
    """The brokers of one cluster; a context manager that starts and stops them.

    Every topic has as many copies as there are brokers, and takes records as long as all but one are there.
    """

    def __init__(
        self, folder: Path, brokers: int = 3, *, network: Network | None = None, processes: Sequence[str] = ()
    ) -> None:
        """Prepare the brokers.

        Args:
            folder: Folder of their records.
            brokers: Number of brokers.
            network: The network between them and `processes`.
            processes: Names of the processes; each connects through ways of its own, at the address `door(name)`.
        """
        self.nodes = tuple(Node(folder / f"broker-{number}", number) for number in range(1, brokers + 1))
        for node in self.nodes:
            node.peers = self.nodes
            for process in processes:
                assert network is not None
                node.open_door(network, process)

    def door(self, process: str) -> str:
        """Bootstrap servers, `host:port,…`, for one process."""
        return ",".join(node.door(process) for node in self.nodes)

    def __enter__(self) -> Self:
        # `asyncio.run` would unset the event loop that pytest keeps in this thread.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._start())
        except BaseException:
            self.__exit__()
            raise
        finally:
            loop.close()
        return self

    def __exit__(self, *_: object) -> None:
        # No graceful stop is needed: the folder goes with the test.
        for node in self.nodes:
            node.kill()

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers, `host:port,…`, past the network."""
        return ",".join(node.bootstrap for node in self.nodes)

    async def _start(self) -> None:
        for node in self.nodes:
            await node.prepare()
        # One broker alone has no majority, and would not answer.
        await asyncio.gather(*(node.start() for node in self.nodes))
