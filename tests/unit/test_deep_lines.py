"""Odd lines where no check has been yet: they are taken as they are, and ingest names their fault."""

import pytest

from tidemill.api.reruns.input_file import rewrite_line
from tidemill.ingest.streams.factory import _endpoint
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.line import model_of

CHAT = "/v1/chat/completions"
GOOD = b'{"custom_id":"a","url":"%s","body":{"model":"m"}}' % CHAT.encode()


@pytest.mark.parametrize("levels", [10, 900, 1_100, 100_000])
@pytest.mark.parametrize("field", ["body", "other"])
def test_a_line_of_any_depth_is_taken(levels, field):
    """More levels than a decoder takes are no error of the service."""
    deep = b'{"%s":%s,"custom_id":"a"}' % (field.encode(), b"[" * levels + b"]" * levels)
    assert model_of(deep) is None
    assert rewrite_line(deep, model="n") == deep
    assert rewrite_line(deep, custom_id="b") == deep or levels < 1_100


@pytest.mark.parametrize("url", ["[]", "{}", "5", "null", '"/v1/none"', f'["{CHAT}"]'])
def test_the_endpoint_is_that_of_the_first_line_with_one(url):
    """A url of another type is that line's fault alone."""
    odd = b'{"url":%s}' % url.encode()
    assert _endpoint([odd, b"no json", GOOD]) == CHAT
    assert _endpoint([odd]) == next(iter(ENDPOINTS))
