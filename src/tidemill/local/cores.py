"""How many processes of processors a machine is given."""

import os

from tidemill.configuration.settings import Settings

CORES_EACH = 2
"""Beside each of them the other stages, the broker and whoever else lives there want to run, too."""


def processors(settings: Settings, cores: int) -> int:
    """The processes of processors: as many as are set, else by the cores.

    A process beyond the partitions of a model would have none of its lines.
    """
    return settings.processor_processes or max(1, min(cores // CORES_EACH, settings.partitions))


def available() -> int:
    """The cores that this process may run on; a quota of a container is not known here."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
