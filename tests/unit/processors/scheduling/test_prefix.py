"""The prefix key of a line's prompt."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import configured

from tidemill.configuration.servers import Model
from tidemill.processors.lines import Line
from tidemill.processors.scheduling.prefix_groups import prefix_key, prefixes
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log.codec import RequestHead

texts = st.text(max_size=100)


def line(url: str, prompt: str, custom_id: str = "a", **more: object) -> bytes:
    """An input line whose prompt stands last, the model and whatever else before it."""
    field = ENDPOINTS[url].prompt
    content: object = [{"role": "system", "content": prompt}] if field == "messages" else prompt
    return json.dumps({"custom_id": custom_id, "url": url, "body": {**more, field: content}}).encode()


@pytest.mark.parametrize("url", ENDPOINTS)
@given(common=st.text(min_size=64, max_size=100), tails=st.tuples(texts, texts), more=st.tuples(texts, texts))
def test_the_key_depends_on_the_prefix_alone(
    url: str, common: str, tails: tuple[str, str], more: tuple[str, str]
) -> None:
    """Prompts with the same first bytes have the same key, whatever their ids and models."""
    keys = {
        prefix_key(line(url, common + tail, custom_id=other, model=other), url, 64)
        for tail, other in zip(tails, more, strict=True)
    }
    assert len(keys) == 1
    assert None not in keys


@given(st.text(min_size=64, max_size=80), st.text(min_size=64, max_size=80))
def test_different_prefixes_have_different_keys(one: str, other: str) -> None:
    """By the bytes as they stand."""
    url = "/v1/completions"
    same = json.dumps(one)[:64] == json.dumps(other)[:64]
    assert (prefix_key(line(url, one), url, 64) == prefix_key(line(url, other), url, 64)) == same


@pytest.mark.parametrize("url", [*ENDPOINTS, "/v1/mine"])
@given(text=st.binary(max_size=200))
def test_a_line_without_a_long_prompt_has_no_key(url: str, text: bytes) -> None:
    """A line that lies in the store is empty here; one that has no prompt, or a short one, is in no group."""
    assert prefix_key(text, url, 256) is None


def test_a_field_name_within_a_string_is_ignored() -> None:
    """Its quotes are escaped, or no colon follows."""
    url = "/v1/chat/completions"
    plain = line(url, "x" * 100)
    assert prefix_key(line(url, "x" * 100, custom_id='"messages": [', stop="messages"), url, 64) == prefix_key(
        plain, url, 64
    )


def test_groups_are_off_by_default() -> None:
    """And a backend that is drained is given no group."""
    backends = ({"url": "http://a/v1", "drain": True}, {"url": "http://b/v1"})
    plain = Model.model_validate({"backends": backends})
    pool = configured({"m": plain}).pools["m"]
    assert prefixes(plain, pool) is None
    model = Model.model_validate({"backends": backends, "prefix_bytes": 64})
    made = prefixes(model, pool)
    assert made is not None
    assert [place.name for place in made.places] == ["b:80"]
    head = RequestHead(batch_id="b", project="p", first=0, deadline=0, url="/v1/completions")
    texts = [line(head.url, "x" * 64 + tail) for tail in ("one", "two")]
    keys = {made.key(Line(head, index, text, [])) for index, text in enumerate(texts)}
    assert len(keys) == 1
