"""What the doctor says of each thing that was looked at: pure judgements of what was seen."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidemill.schemas.log import topics
from tidemill.schemas.log.topics import DAY_MS, Topic
from tidemill.schemas.resources.waiting import Reason, Waiting, moment

SKEW_SECONDS_OK: Final = 2.0
SKEW_SECONDS_MAX: Final = 30.0
"""Clocks that differ by more make deadlines and the log's times disagree."""
FREE_BYTES_OK: Final = 10 << 30
FREE_BYTES_MIN: Final = 1 << 30
STALLS_MAX: Final = 20
"""Reasons for stalls that are named, those of the most batches."""


class Verdict(StrEnum):
    """How well a thing is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor."""

    what: str
    verdict: Verdict
    text: str
    mend: str = ""
    """What to do about it."""


def ok(what: str, text: str) -> Finding:
    """It is well."""
    return Finding(what=what, verdict=Verdict.OK, text=text)


def warn(what: str, text: str, mend: str) -> Finding:
    """It works, and will not always."""
    return Finding(what=what, verdict=Verdict.WARN, text=text, mend=mend)


def fail(what: str, text: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(what=what, verdict=Verdict.FAIL, text=text, mend=mend)


def topic(
    row: Topic, *, partitions: int, together: int, configs: Mapping[str, str], replication: int
) -> Finding | None:
    """What is wrong with a topic; None where nothing is.

    Args:
        row: What the table says.
        partitions: How many it has; 0 where it does not exist.
        together: How many `outcomes` has.
        configs: What is set about it.
        replication: Copies that the settings ask for, for the advice.
    """
    if not partitions:
        return warn(row.name, "does not exist", f"a stage makes it at its start, with {replication} copies")
    return _spread(row, partitions, together) or _kept(row, configs)


def _spread(row: Topic, partitions: int, together: int) -> Finding | None:
    if not row.spread and partitions != 1:
        return fail(row.name, f"has {partitions} partitions instead of one", "make it anew with one partition")
    if row == topics.COMMANDS and partitions != together:
        return fail(row.name, f"has {partitions} partitions and outcomes {together}", "give both the same number")
    return None


def _kept(row: Topic, configs: Mapping[str, str]) -> Finding | None:
    name = row.name
    policy = set(configs.get("cleanup.policy", "delete").split(","))
    if row.compacted and policy != {"compact"}:
        return fail(name, f"has cleanup.policy={','.join(sorted(policy))}, and its state would be lost",
                    "set cleanup.policy=compact")  # fmt: skip
    if not row.compacted and "compact" in policy:
        return fail(name, "is compacted, and records with equal keys would be lost", "set cleanup.policy=delete")
    kept_ms = int(configs.get("retention.ms", -1))
    if row.retention_ms < 0 and (kept_ms >= 0 or int(configs.get("retention.bytes", -1)) >= 0):
        return fail(name, "drops old records, and a revoked key would open again",
                    "set retention.ms=-1 and retention.bytes=-1")  # fmt: skip
    if not row.compacted and 0 <= kept_ms < row.retention_ms:
        return warn(name, f"is kept for {kept_ms / DAY_MS:.1f} days instead of {row.retention_ms // DAY_MS}",
                    f"set retention.ms={row.retention_ms}, or keep windows shorter")  # fmt: skip
    return None


def keys(count: int, refused: Sequence[int]) -> Finding:
    """What `tidemill.keys` holds.

    Args:
        count: Its records.
        refused: Offsets of those that no trusted key has signed, in order.
    """
    if not refused:
        return ok("keys", f"the api has signed all {count} records")
    text = (
        f"{len(refused)} of {count} records are not signed by the api, and change nothing; "
        f"the last is at offset {refused[-1]}"
    )
    return warn("keys", text, "see who may write to tidemill.keys, and whether the signing key was replaced")


def clock(skew_seconds: float | None) -> Finding:
    """How far this machine's clock is behind the newest record; None where there is none yet."""
    if skew_seconds is None:
        return ok("clock", "nothing to compare it with yet")
    if skew_seconds <= SKEW_SECONDS_OK:
        return ok("clock", "not behind the newest record of the log")
    text = f"{skew_seconds:.1f} s behind the newest record of the log"
    mend = "let a time service set the clocks of all machines"
    return (warn if skew_seconds <= SKEW_SECONDS_MAX else fail)("clock", text, mend)


def stalled(batches: Mapping[str, Sequence[Waiting]]) -> list[Finding]:
    """What batches wait for: one finding for each reason, server and status.

    Args:
        batches: The batches that wait, by id, and what each of them waits for.
    """
    found: dict[tuple[Reason, str | None, int | None], list[tuple[str, Waiting]]] = {}
    for batch_id, waits in batches.items():
        for one in waits:
            found.setdefault((one.reason, one.server, one.status), []).append((batch_id, one))
    largest = sorted(found.items(), key=lambda item: -len(item[1]))[:STALLS_MAX]
    return [_stall(reason, waiting) for (reason, *_), waiting in largest] or [ok("batches", "none is stalled")]


def _stall(reason: Reason, waiting: Sequence[tuple[str, Waiting]]) -> Finding:
    batch_id, first = min(waiting, key=lambda item: item[1].since)
    who = f"{batch_id} waits" if len(waiting) == 1 else f"{batch_id} and {len(waiting) - 1} more wait"
    text = f"{who} since {moment(first.since)}: {first.message}"
    return warn("batches", text, f"docs/reference/waiting.md says what to do about `{reason}`")


def disk(what: str, free_bytes: int) -> Finding:
    """Room that is left."""
    text = f"{free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes >= FREE_BYTES_OK:
        return ok(what, text)
    mend = "make room, or move the folder with --data"
    return (warn if free_bytes >= FREE_BYTES_MIN else fail)(what, text, mend)


def backend(what: str, model: str, endpoints: Sequence[str], lacking: Collection[str]) -> Finding:
    """A server that answers and lists its model.

    Args:
        what: Its name.
        model: The model's.
        endpoints: What the model can be asked for by the settings.
        lacking: Those of them that the server does not know.
    """
    if not lacking:
        return ok(what, f"answers, and serves {model}")
    text = f"serves {model}, and not at {', '.join(name for name in endpoints if name in lacking)}"
    rest = ", ".join(f'"{name}"' for name in endpoints if name not in lacking)
    mend = f"set endpoints = [{rest}] for the model: a batch for another one is then refused at once"
    return warn(what, text, mend if rest else "is its address right? It usually ends in /v1")


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether nothing fails."""
    return all(finding.verdict is not Verdict.FAIL for finding in findings)
