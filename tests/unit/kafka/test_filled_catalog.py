"""What an api does with the servers and models of its file when the catalog has some already."""

import logging

import pytest

from tidemill.configuration.catalog import FILE, Applied
from tidemill.kafka.catalog import Catalog
from tidemill.schemas import fingerprint_of

SETTINGS = {"server/a": {"url": "http://a/v1"}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SETTINGS, []),
        ({}, []),
        (
            {"server/a": {"url": "http://b/v1"}},
            ["the settings file is not applied to server/a: `tidemill apply` applies it"],
        ),
    ],
)
async def test_a_changed_file_is_named_in_the_log(settings, said, caplog):
    """And not applied; one that was applied, or has nothing, is not named."""
    catalog = Catalog(None)
    catalog.apply("server/a", b'{"settings": {"url": "http://a/v1"}, "of_file": true, "author": "f", "at": 1}', 0)
    catalog.apply(FILE, Applied(digest=fingerprint_of(SETTINGS), author="f", at=1).model_dump_json().encode(), 1)
    with caplog.at_level(logging.WARNING):
        assert not await catalog.fill(None, settings, author="f", again=False)
    assert caplog.messages == said
    assert catalog.contents.revision == 1
