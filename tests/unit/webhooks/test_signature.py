"""Signatures: a known one, and what OpenAI's SDK verifies."""

import base64
import time

import openai
import pytest

from tidemill.schemas.webhooks import messages, signature

KNOWN = bytes(range(32))
BODY = (
    b'{"id":"evt_test_1","object":"event","type":"batch.completed","created_at":1790000000,'
    b'"data":{"id":"batch_test_1"}}'
)
SIGNED = "v1,8/ukYqCKSUOTF3x+nC0f4KLF9NiOyLAGIFo1ZrF34Kk="


def test_a_known_signature():
    """That of a vector that OpenAI's SDK 3.54 accepts."""
    assert signature.shown(KNOWN) == "whsec_" + base64.b64encode(KNOWN).decode()
    assert signature.headers("wh_test_1", 1_790_000_000, BODY, [KNOWN])["webhook-signature"] == SIGNED


def test_the_sdk_verifies_each_secret_of_a_rotation():
    """And no other one; the event has OpenAI's shape."""
    event = messages.event_of("batch_1", "expired", 1_790_000_000)
    old, new, other = (signature.new_secret() for _ in range(3))
    headers = signature.headers(event.id, int(time.time()), event.body, [new, old])
    client = openai.OpenAI(api_key="unused")
    for secret in (old, new):
        found = client.webhooks.unwrap(event.body, headers, secret=signature.shown(secret))
        assert (found.id, found.type, found.data.id, found.created_at) == (
            event.id, "batch.expired", "batch_1", 1_790_000_000,
        )  # fmt: skip
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(event.body, headers, secret=signature.shown(other))


def test_ids_are_the_same_each_time():
    """Of an event, and of its delivery to an endpoint."""
    first, second = (messages.event_of("batch_1", "failed", at) for at in (1, 2))
    assert first.id == second.id != messages.event_of("batch_1", "completed", 1).id
    assert messages.delivery_id("we_1", first.id) != messages.delivery_id("we_2", first.id)
