"""A short run with faults of all kinds: nothing is lost, nothing is double, no bill is wrong."""

import pytest
from chaos.faults import ANYWHERE
from chaos.harness import Plan, run, schedule

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

SEED = 7
RUN_SECONDS_MAX = 600


def test_the_seed_gives_the_schedule():
    """Times, kinds and victims are a function of the plan."""
    plan = Plan(seed=SEED, seconds=600)
    assert list(schedule(plan)) == list(schedule(plan))
    assert list(schedule(plan)) != list(schedule(Plan(seed=SEED + 1, seconds=600)))


def test_so_many_faults_as_are_asked_for():
    """However short the time is."""
    plan = Plan(seed=SEED, seconds=1, faults=("kill", "power:finalizing"), count=100)
    assert len(list(schedule(plan))) == 100


@pytest.mark.timeout(RUN_SECONDS_MAX)
def test_faults_cost_nothing(tmp_path):
    """Invariants 1 to 6, as far as the outside can see them."""
    plan = Plan(seed=SEED, seconds=60, every_seconds=6, batches=10, lines=5_000, faults=ANYWHERE)
    report = run(plan, tmp_path / "data")
    print(report)  # noqa: T201  the table is what the run is for
    assert not report.failures
