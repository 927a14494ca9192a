"""Aimed strikes: they wait for their moment, and a strike that came too late does not count."""

import time

import pytest
from chaos import aim
from chaos.aim import Aim

LATER_SECONDS = 60


def shown(number, status, done=0, ended_at=0):
    """A batch of a hundred times `LINES_MIN` lines, as the API shows it."""
    counts = {"total": 100 * aim.LINES_MIN, "completed": done, "failed": 0}
    return {"id": f"b{number}", "status": status, "request_counts": counts, "completed_at": ended_at}


class Api:
    """Returns one state after the other; the last one stays."""

    def __init__(self, *pictures):
        self.pictures = list(pictures)

    def __call__(self):
        return self.pictures.pop(0) if len(self.pictures) > 1 else self.pictures[0]


def test_a_strike_that_came_too_late_is_tried_with_the_next_batch():
    """The first batch was over when it was struck, the second one is ended by another process, long after."""
    api = Api([shown(1, "in_progress")], [shown(1, "finalizing")])
    struck = []

    def strike(batch_id):
        struck.append(batch_id)
        over = shown(1, "completed", ended_at=int(time.time()))
        end = int(time.time()) + LATER_SECONDS
        if len(struck) == 1:
            api.pictures = [[over], [over, shown(2, "in_progress")], [over, shown(2, "finalizing")]]
        else:
            api.pictures = [[over, shown(2, "finalizing")], [over, shown(2, "completed", ended_at=end)]]

    taken = Aim(api)
    taken.strike_at("finalizing", strike)
    assert struck == ["b1", "b2"]
    assert (taken.strikes["finalizing"], taken.met["finalizing"]) == (2, 1)


def test_what_was_there_before_one_looked_is_no_moment(monkeypatch):
    """A batch that is finalizing at the first look may have been so for long, without a process at work on it."""
    monkeypatch.setattr(aim, "AIM_SECONDS_MAX", 0.1)
    with pytest.raises(AssertionError, match="a large batch at finalizing"):
        Aim(Api([shown(1, "finalizing")])).strike_at("finalizing", print)


@pytest.mark.parametrize(
    ("before", "now", "is_moment"),
    [(10, 10, False), (10, 20, True), (0, 50 * aim.LINES_MIN, True), (10, 90 * aim.LINES_MIN, False)],
)
def test_the_middle_of_lines_is_seen_by_their_going_on(before, now, is_moment):
    """Lines that go on belong to a process at work, and most are still to come."""
    first, last = shown(1, "in_progress", before), shown(1, "in_progress", now)
    assert aim.MOMENTS["lines"](first, last) is is_moment


def test_while_the_api_is_away_nothing_is_known():
    """The strike asks again later."""

    def away():
        raise OSError

    assert Aim(away).ended("b1") == 0
    assert Aim(away).final("b1") == 0
