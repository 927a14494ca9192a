"""Means of a run: disks of its own, a library that all processes load, an S3 server.

If a machine lacks one of them, for example a C compiler or the right to mount, the run says so and leaves out the
faults that need it.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos import cluster, disk, meddle
from chaos.disk import Disk
from chaos.meddle import Meddle

DISK = "disk"
MEDDLE = "meddle"
NETWORK = "network"
"""The need of faults that require a cluster."""
WHY_NOT = {DISK: disk.missing, MEDDLE: meddle.missing, NETWORK: cluster.missing}
"""Needs of faults, each with the function that says why this machine lacks it."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """The means of a run; faults that need a missing one are left out.

    Attributes:
        disk: Holds the data folder, but for the store.
        store: Holds the store.
        meddle: Steps clocks and slows down disks.
    """

    disk: Disk | None = None
    store: Disk | None = None
    meddle: Meddle | None = None

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables for all processes of the installation."""
        return self.meddle.environ if self.meddle else {}

    def heal(self) -> None:
        """Undo full disks, slow disks, and the step of all clocks."""
        for each in (self.disk, self.store):
            if each is not None:
                each.empty()
        if self.meddle is not None:
            self.meddle.heal()


@contextmanager
def rigged(data: Path, needs: Iterable[str], *, keep: bool) -> Iterator[Rig]:
    """Provide the means that a run needs during the block.

    Args:
        data: The folder of the installation; created if missing.
        needs: Keys of `WHY_NOT`.
        keep: Whether to leave a copy of the disks in `DATA.rig`.
    """
    data.mkdir(parents=True, exist_ok=True)
    beside = data.with_name(f"{data.name}.rig")
    store = beside / "store"
    if wanted := {need for need in needs if need}:
        store.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        disks: dict[str, Disk] = {}
        if DISK in wanted:
            disks["disk"] = stack.enter_context(Disk(data, kept=beside / "kept" if keep else None))
            disks["store"] = stack.enter_context(Disk(store, kept=beside / "kept-store" if keep else None))
            (data / "store").symlink_to(store)
        lent = stack.enter_context(Meddle(beside, data / "store")) if MEDDLE in wanted else None
        yield Rig(**disks, meddle=lent)
