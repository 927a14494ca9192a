"""What the processes of a service use, by stage: CPU seconds, and the most memory that was seen."""

import asyncio
from contextlib import suppress

import psutil

SAMPLE_SECONDS = 0.1


def cpu_seconds(processes: dict[str, list[int]]) -> dict[str, float]:
    """CPU seconds that the processes of each stage have used so far."""
    found = {}
    for stage, pids in processes.items():
        total = 0.0
        for pid in pids:
            with suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
        found[stage] = total
    return found


class Peak:
    """The most resident memory of each stage in MiB, sampled while it runs."""

    def __init__(self, processes: dict[str, list[int]]) -> None:
        self._processes = processes
        self.mib: dict[str, float] = dict.fromkeys(processes, 0.0)

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            for stage, pids in self._processes.items():
                total = 0.0
                for pid in pids:
                    with suppress(psutil.Error):
                        total += psutil.Process(pid).memory_info().rss
                self.mib[stage] = max(self.mib[stage], total / (1 << 20))
            await asyncio.sleep(SAMPLE_SECONDS)
