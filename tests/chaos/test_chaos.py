"""A short run with faults of all kinds: no line is lost or double, and no bill is wrong."""

import pytest
from chaos import network
from chaos.cluster import missing
from chaos.faults import ANYWHERE
from chaos.harness import Plan, run, schedule

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

SEED = 7
RUN_SECONDS_MAX = 3600


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
    check(Plan(seed=SEED, seconds=60, every_seconds=6, batches=10, lines=5_000, faults=ANYWHERE), tmp_path)


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.timeout(RUN_SECONDS_MAX)
def test_cuts_cost_nothing(tmp_path):
    """The same in a cluster, between whose processes, brokers and store the network fails."""
    # Few calls at a time, so that lines are under way in all faults.
    faults = tuple(network.FAULTS)
    check(Plan(seed=SEED, seconds=40, batches=8, lines=6_000, max_in_flight=8, faults=faults), tmp_path)


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.timeout(RUN_SECONDS_MAX)
def test_scenarios(tmp_path):
    """Each of the six is met at its point, and costs nothing."""
    check(Plan(seed=SEED, count=1, batches=4, lines=2_000, faults=("scenario:all",)), tmp_path)


def check(plan, folder):
    report = run(plan, folder / "data")
    print(report)  # noqa: T201  the table is what the run is for
    assert not report.failures
