"""Reports that say why lines wait: they fit into a record, and each replaces the one before."""

from tidemill.results.state.stalls import Stalls
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, SERVER_CHARS_MAX, Reason, Waiting


def test_results_takes_the_reports_of_a_source_in_their_order():
    """It ignores one that arrives twice, or after a later one; those of another source count for themselves."""
    reports, others, stalls = StallReports("a", model="m"), StallReports("a"), Stalls()
    first, last = reports.on("batch_1", Waiting.of(Reason.STORE, "No.", since=1.0)), reports.on("batch_1")
    assert (first.model, first.waiting[0].reason, last.waiting) == ("m", Reason.STORE, ())
    assert first.source == last.source != (other := others.on("batch_1")).source
    assert [stalls.add(each, 0.0) for each in (last, first, last, other)] == [True, False, False, True]


def test_texts_are_cut_to_what_a_record_holds():
    """Those of servers and of the system have any length; a clock may stand before 1970."""
    wait = Waiting.of(Reason.SERVER_FAILS, "x" * 10_000, since=-0.5, server="s" * 10_000, status=500)
    assert (len(wait.message), len(wait.server), wait.since) == (MESSAGE_CHARS_MAX, SERVER_CHARS_MAX, 0)
    report = StallReports("a").on("batch_1", wait)
    assert Stalled.model_validate_json(report.model_dump_json()) == report
