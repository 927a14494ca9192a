"""Messages have one thing in the singular."""

import pytest

from tidemill.ingest.files import verdict
from tidemill.ops import findings
from tidemill.ops import rebuild as work
from tidemill.results.files.rebuild import Rebuilt
from tidemill.schemas.log import topics
from tidemill.schemas.resources.batch import FileReceipt, Receipt
from tidemill.wording import NAMES_SHOWN_MAX, counted, listed, verb


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (0, "line", "0 lines"),
        (1, "line", "1 line"),
        (2_000, "line", "2,000 lines"),
        (2, "batch", "2 batches"),
        (2, "process", "2 processes"),
        (2, "more entry", "2 more entries"),
        (1, "more entry", "1 more entry"),
        (2, "day", "2 days"),
        (2, "key", "2 keys"),
    ],
)
def test_a_number_with_its_noun(number, noun, words):
    """The plural follows the usual rules of spelling."""
    assert counted(number, noun) == words


@pytest.mark.parametrize(("number", "form"), [(0, "are"), (1, "is"), (2, "are")])
def test_a_verb_goes_with_its_number(number, form):
    """None are, one is, two are."""
    assert verb(number, "is", "are") == form


def test_one_record_is_no_records():
    """In the words of the commands of operators, and of ingest."""
    assert findings.keys(1, []).text == "1 record, all signed by the api"
    assert findings.keys(1, [0]).text.startswith("1 of 1 record is not signed by the api and has no effect; ")
    missing = findings.topic(topics.COMMANDS, replicas=[], configs={}, wanted={}, replication=1)
    assert missing.fix.endswith("with 1 replica")
    assert verdict._more(1).message == "Not listed: 1 more error."
    file = FileReceipt(lines=1, bytes=20, sha256="0" * 64)
    receipt = Receipt(lines=1, output=file)
    rebuilt = Rebuilt(receipt=receipt, published=receipt, unreadable=1)
    assert work._summary(rebuilt).startswith("output 1 line, 20 bytes, ")
    assert work._summary(rebuilt).endswith("; unreadable: 1 record")


def test_many_names_are_cut():
    """The first ones are listed, and the others counted."""
    names = [str(number) for number in range(NAMES_SHOWN_MAX)]
    assert listed([]) == ""
    assert listed(names) == ", ".join(names)
    assert listed([*names, *["x"] * 1_000]) == f"{', '.join(names)}, 1,000 more"
