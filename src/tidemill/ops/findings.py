"""Findings of `tidemill doctor`: judges observations, without I/O."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidemill.schemas.log.topics import DAY_MS, Topic
from tidemill.schemas.resources.waiting import Reason, Waiting, moment
from tidemill.schemas.webhooks.messages import Health
from tidemill.wording import counted, verb

SKEW_SECONDS_OK: Final = 2.0
SKEW_SECONDS_MAX: Final = 30.0
"""A larger skew makes deadlines and the times in the log disagree."""
WEBHOOKS_MAX: Final = 20
"""Webhook endpoints to report."""
STALLS_MAX: Final = 20
"""Reasons for stalls to report: those that affect the most batches."""

REMEDIES: Final = {
    Reason.SERVER_UNREACHABLE: "start the server; check its address, and its certificate",
    Reason.SERVER_REFUSES: "check the server, `api_key_env` and the model's name",
    Reason.SERVER_FAILS: "read the server's log",
    Reason.SERVER_SILENT: "read the server's log; `timeout_seconds` limits a call",
    Reason.IN_FLIGHT: "nothing: calls are long",
    Reason.QUEUED: "nothing, or add servers",
    Reason.SCHEDULE: "nothing: see `hours`",
    Reason.DRAINED: "`tidemill servers resume`",
    Reason.PAUSED: "`tidemill models resume`",
    Reason.REMOVED: "add the model again, or let the batch end at its deadline",
    Reason.ACCESS: "set the variable and restart the processors; a file may be put there while they run",
    Reason.HEADROOM: "nothing, or set `ttft_ms` of `headroom`",
    Reason.TOKENS_PER_MINUTE: "nothing, or raise `tokens_per_minute`",
    Reason.MEMORY: "nothing, or add processes",
    Reason.STORE: "check the store; is it mounted?",
    Reason.KEY: "put the key back into `encryption_key_file`",
    Reason.DELIVERY: "check the broker, the store and their disks; the topics, if the log refuses results",
    Reason.BATCHES_AT_WORK: "nothing, or raise `batches_at_work_max`",
    Reason.VALIDATION: "is ingest running? can it read the store?",
    Reason.OPEN: "append lines, or seal it; to the stream of a direct producer, produce lines, or a record with "
    "`tidemill-end`; after `intake_idle_seconds` without a line Tidemill seals it",
    Reason.NO_PROCESSOR: "are the model's processors running? do they reach the broker?",
    Reason.FILES: "check the store, and restore the object from a copy of it; "
    "set the price again: a process of another version may have written it",
    Reason.IMPORT: "nothing",
    Reason.BUCKET: "check the bucket and its connection",
}
"""What an operator does about each reason to wait, as in the table of docs/reference/waiting.md."""


class Verdict(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding."""

    what: str
    verdict: Verdict
    text: str
    fix: str = ""
    """The remedy."""


def ok(what: str, text: str) -> Finding:
    """A finding that needs no action."""
    return Finding(what=what, verdict=Verdict.OK, text=text)


def warn(what: str, text: str, fix: str) -> Finding:
    """A finding that may become a failure."""
    return Finding(what=what, verdict=Verdict.WARN, text=text, fix=fix)


def fail(what: str, text: str, fix: str) -> Finding:
    """A failure."""
    return Finding(what=what, verdict=Verdict.FAIL, text=text, fix=fix)


def topic(
    row: Topic, *, replicas: Sequence[int], configs: Mapping[str, str], wanted: Mapping[str, str], replication: int
) -> Finding | None:
    """The fault of a topic that should be like `row`; None if it has none.

    Args:
        row: What the topic should be.
        replicas: How many each of its partitions has; empty if the topic is missing.
        configs: Its configuration.
        wanted: The configuration that it needs.
        replication: The replicas that a stage would give it.
    """
    if not replicas:
        fix = f"a stage creates it at its start, with {counted(replication, 'replica')}"
        return warn(row.name, "does not exist", fix)
    if not row.spread and len(replicas) != 1:
        return fail(row.name, f"has {len(replicas)} partitions instead of one", "recreate it with one partition")
    in_sync = int(configs.get(_IN_SYNC, 1))
    if in_sync > (copies := min(replicas)):
        text = f"has {_IN_SYNC}={in_sync} and {counted(copies, 'replica')}, so the broker refuses every record"
        return fail(row.name, text, f"set {_IN_SYNC}={min(copies, 2)}, or add replicas")
    return _kept(row, configs) or _configured(row, configs, wanted)


def _configured(row: Topic, configs: Mapping[str, str], wanted: Mapping[str, str]) -> Finding | None:
    """All values that are worse than the wanted ones; one that the broker hides is taken for right."""
    worse = [
        (rule, f"has {name}={have}, {rule.harm}", f"{name}={want}")
        for name, rule in _RULES.items()
        if (have := configs.get(name)) is not None
        and (want := wanted.get(name)) is not None
        and not rule.suffices(have, want)
    ]
    if not worse:
        return None
    rules, texts, values = zip(*worse, strict=True)
    judge = fail if any(rule.judge is fail for rule in rules) else warn
    return judge(row.name, "; ".join(texts), f"set {', '.join(values)}")


@dataclass(frozen=True)
class _Rule:
    suffices: Callable[[str, str], bool]
    """Given a value and the wanted one."""
    judge: Callable[[str, str, str], Finding]
    harm: str


def _at_least(have: str, want: str) -> bool:
    return int(have) >= int(want)


def _at_most(have: str, want: str) -> bool:
    return int(have) <= int(want)


_IN_SYNC: Final = "min.insync.replicas"
_RULES: Final = {
    "max.message.bytes": _Rule(_at_least, fail, "so the broker refuses large records"),
    "delete.retention.ms": _Rule(_at_least, fail, "after which a process that was away misses deletions"),
    _IN_SYNC: _Rule(_at_least, warn, "so an acknowledged record may be on one disk only"),
    "message.timestamp.type": _Rule(str.__eq__, warn, "the times of its producers, whose clocks may be wrong"),
    "max.compaction.lag.ms": _Rule(_at_most, warn, "so replaced and deleted records stay for longer"),
    "segment.ms": _Rule(_at_most, warn, "so replaced and old records stay for longer"),
    "segment.bytes": _Rule(_at_most, warn, "so replaced records fill the disk, and a start reads them"),
}
"""How the values are judged that a topic gets when Tidemill creates it; `_kept` judges the others."""


def _kept(row: Topic, configs: Mapping[str, str]) -> Finding | None:
    name = row.name
    policy = set(configs.get("cleanup.policy", "delete").split(","))
    if row.compacted and policy != {"compact"}:
        return fail(name, f"has cleanup.policy={','.join(sorted(policy))}, which would lose its state",
                    "set cleanup.policy=compact")  # fmt: skip
    if not row.compacted and "compact" in policy:
        return fail(name, "is compacted, which would lose records with equal keys", "set cleanup.policy=delete")
    kept_ms, kept_bytes = int(configs.get("retention.ms", -1)), int(configs.get("retention.bytes", -1))
    if row.retention_ms < 0 and (kept_ms >= 0 or kept_bytes >= 0):
        return fail(name, "drops old records, after which a revoked key would be valid again",
                    "set retention.ms=-1 and retention.bytes=-1")  # fmt: skip
    if not row.compacted and kept_bytes >= 0:
        text = f"drops its oldest records when a partition exceeds {kept_bytes} bytes, whatever their age"
        lost = ", also lines that have not run" if row.is_needed else ""
        return (fail if row.is_needed else warn)(name, text + lost, "set retention.bytes=-1")
    if not row.compacted and 0 <= kept_ms < row.retention_ms:
        return warn(name, f"is kept for {kept_ms / DAY_MS:.1f} days instead of {row.retention_ms / DAY_MS:.3g}",
                    f"set retention.ms={row.retention_ms}, or shorten the completion windows")  # fmt: skip
    return None


def keys(count: int, refused: Sequence[int]) -> Finding:
    """Whether the api has signed the records of `tidemill.keys`, apart from those at the `refused` offsets."""
    if not refused:
        return ok("keys", f"{counted(count, 'record')}, all signed by the api" if count else "no records yet")
    text = (
        f"{len(refused)} of {counted(count, 'record')} {verb(len(refused), 'is', 'are')} not signed by the api "
        f"and {verb(len(refused), 'has', 'have')} no effect; "
        f"the last is at offset {refused[-1]}"
    )
    return warn("keys", text, "check who may write to tidemill.keys, and whether the signing key was replaced")


def webhooks(failing: Sequence[Health], *, has_key_file: bool) -> list[Finding]:
    """Webhook endpoints that fail or are disabled, and whether the api could store the secret of a new one."""
    fix = "`tidemill webhooks deliveries ENDPOINT` shows why"
    again = f"{fix}; `tidemill webhooks update ENDPOINT` enables it again"
    found = [
        warn(
            f"webhook endpoint {each.endpoint_id}",
            f"{_state(each)} (project {each.project})",
            fix if each.disabled_at is None else again,
        )
        for each in failing[:WEBHOOKS_MAX]
    ]
    if len(failing) > WEBHOOKS_MAX:
        more = len(failing) - WEBHOOKS_MAX
        found.append(warn("webhooks", f"{counted(more, 'more endpoint')} {verb(more, 'fails', 'fail')}", fix))
    if not has_key_file:
        text = "there is no key file here, and without one the api refuses new endpoints"
        found.append(warn("webhooks", text, "set encryption_key_file for the api and webhooks"))
    return found or [ok("webhooks", "no endpoint fails")]


def _state(health: Health) -> str:
    if health.disabled_at is not None:
        return f"was disabled at {moment(health.disabled_at)} after five days of failures"
    return f"has failed since {moment(health.failing_since or 0)}"


def clock(skew_seconds: float | None) -> Finding:
    """Judge how far the clock of this machine is behind the newest record; None without a record."""
    if skew_seconds is None:
        return ok("clock", "the log has no record to compare it with yet")
    if skew_seconds <= SKEW_SECONDS_OK:
        return ok("clock", "not behind the newest record of the log")
    text = f"{skew_seconds:.1f} s behind the newest record of the log"
    fix = "synchronize the clocks of all machines (NTP)"
    return (warn if skew_seconds <= SKEW_SECONDS_MAX else fail)("clock", text, fix)


def stalled(batches: Mapping[str, Sequence[Waiting]], *, days: int) -> list[Finding]:
    """One finding for each reason, server and status that stalls batches of these days, given why each waits."""
    found: dict[tuple[Reason, str | None, int | None], list[tuple[str, Waiting]]] = {}
    for batch_id, waits in batches.items():
        for one in waits:
            found.setdefault((one.reason, one.server, one.status), []).append((batch_id, one))
    largest = sorted(found.items(), key=lambda item: -len(item[1]))[:STALLS_MAX]
    return [_stall(reason, waiting) for (reason, *_), waiting in largest] or [
        ok("batches", f"none of the last {days} days is stalled")
    ]


def _stall(reason: Reason, waiting: Sequence[tuple[str, Waiting]]) -> Finding:
    batch_id, first = min(waiting, key=lambda item: item[1].since)
    who = f"{batch_id} waits" if len(waiting) == 1 else f"{batch_id} and {len(waiting) - 1} more wait"
    text = f"{who} since {moment(first.since)}: {first.message}"
    return warn("batches", text, f"{REMEDIES[reason]} (reason `{reason}`)")


def dead_letters(waiting: int) -> Finding:
    """Judge the number of dead letters of the last day that an operator has not sent again."""
    if not waiting:
        return ok("dead letters", "none in the last 24 hours")
    are = verb(waiting, "is a dead letter", "are dead letters")
    text = f"{counted(waiting, 'record')} of the last 24 hours {are}"
    return warn("dead letters", text, "`tidemill dead list` shows why, and of which stream and project")


def disk(what: str, free_bytes: int, reserve_bytes: int) -> Finding:
    """Judge the free space of a disk by the reserve, as `storage/disk_space.py` does."""
    text = f"{free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes >= 2 * reserve_bytes:
        return ok(what, text)
    fix = "free some space, or move the folder to a larger disk"
    reserve = f"the reserve of {reserve_bytes / (1 << 30):.1f} GiB (`disk_reserve_bytes`)"
    if free_bytes >= reserve_bytes:
        return warn(what, f"{text}, less than twice {reserve}: the api refuses uploads and new batches", fix)
    return fail(what, f"{text}, less than {reserve}: batches wait, too", fix)


def server(what: str, model: str, endpoints: Sequence[str], lacking: Collection[str]) -> Finding:
    """Judge a server that lists its model, but is `lacking` some endpoints of the settings."""
    if not lacking:
        return ok(what, f"serves {model}")
    text = f"serves {model}, but not at {', '.join(name for name in endpoints if name in lacking)}"
    rest = ", ".join(f'"{name}"' for name in endpoints if name not in lacking)
    fix = f"set endpoints = [{rest}] for the model, so that other batches are rejected at once"
    return warn(what, text, fix if rest else "check its address, which usually ends in /v1")


def is_healthy(findings: Iterable[Finding]) -> bool:
    """Whether no finding is a failure."""
    return all(finding.verdict is not Verdict.FAIL for finding in findings)
