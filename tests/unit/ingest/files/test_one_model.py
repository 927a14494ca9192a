"""The body of a line names one model, wherever it is looked for."""

import dataclasses

import pytest
from support.checking import CHAT, fault, rules, verdict

from tidemill.ingest.files import validation
from tidemill.ingest.files.verdict import Passed


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize(
    ("begin", "end", "is_refused"),
    [
        ('"model":"m",', ',"model":"latest"', True),
        ('"model": "m", ', ', "model": "latest"', True),
        (' "model" : "latest",', ',"model":"m"', True),
        ('"model":"a\\/b",', ',"model":"m"', True),
        ('"model":"m",', ',"model":"m"', False),
        ('"model":"\\u006d",', "", False),
        ("", ',"model":"latest"', False),
        ('"model":"m",', ',"metadata":{"model":"latest"}', False),
        ('"metadata":{"model":"latest"},', ',"model":"m"', False),
    ],
)
def test_a_body_has_one_model(begin, end, is_refused, is_long):
    """Servers take the last one, and processors compare the beginning, so both must name the same."""
    head = f'{{"custom_id":"model","method":"POST","url":"{CHAT}"'
    text = f'{head},"body":{{{begin}"messages":[]{end}}}}}'
    text += " " * validation.LONG_LINE_BYTES if is_long else ""
    named = dataclasses.replace(rules(), aliases={"latest": "m"})
    if not is_refused:
        assert isinstance(verdict(text.encode(), of=named), Passed)
        return
    _check_refused(text, named)


@pytest.mark.parametrize("other", ['"model":"latest"', '"metadata":{"model":"latest"}'])
def test_a_model_beside_the_body_hides_nothing(other):
    """Lines may have fields that Tidemill ignores."""
    body = '"body":{"model":"m","messages":[],"model":"latest"}'
    text = f'{{"custom_id":"a","method":"POST","url":"{CHAT}",{other},{body}}}'
    _check_refused(text, dataclasses.replace(rules(), aliases={"latest": "m"}))


def _check_refused(text, named):
    found = fault(text.encode(), of=named)
    assert (found.code, found.param) == ("invalid_request", "body.model")
    assert found.message == "The body has 'model' twice, with different values."
