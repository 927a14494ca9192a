"""A model whose settings change while it makes calls."""

from types import SimpleNamespace

import msgspec
import pytest

from tidemill.configuration.servers import Model
from tidemill.processors.awake_model import AwakeModel, Configured
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.sealing.vault import Vault

BACKEND = {"backends": [{"url": "http://127.0.0.1:9/v1"}]}
CHAT = ENDPOINTS["/v1/chat/completions"]

FOLLOWED = {
    "servers": {"backends": [], "servers": ["s"]},
    "backends": {"backends": [{"url": "http://127.0.0.2:9/v1"}]},
    "aliases": {"aliases": ["other"]},
    "endpoints": {"endpoints": ["/v1/chat/completions"]},
    "max_in_flight": {"max_in_flight": 7},
    "tokens_per_minute": {"tokens_per_minute": 7},
    "dedupe": {"dedupe": "all"},
    "price": {"price": {"input_per_million": 1}},
    "paused": {"paused": True},
}
RENEWED = {
    "upstream_model": {"upstream_model": "other"},
    "body_defaults": {"body_defaults": {"top_k": 1}},
    "body_forced": {"body_forced": {"top_k": 1}},
    "timeout_seconds": {"timeout_seconds": 7},
    "tries_max": {"tries_max": 7},
    "prefix_bytes": {"prefix_bytes": 100},
    "inputs_per_call": {"inputs_per_call": 7},
}


def of(settings):
    return Model(**{**BACKEND, **settings})


def awake(pool, model):
    shared = SimpleNamespace(
        upstream=None, store=None, forms=None, budget=LineBudget(), outbox=SimpleNamespace(stalled=None),
        vault=Vault(None), closed=ClosedBatches(), completed=CompletedLines(), kafka=None, log=None,
    )  # fmt: skip
    return AwakeModel("m", Configured(model, pool), shared, lambda _: None)


def sent(model, body):
    line = SimpleNamespace(head=SimpleNamespace(deadline=1))
    options = SimpleNamespace(priority_by_deadline=False)
    return msgspec.json.decode(model._caller._sent(msgspec.Raw(msgspec.json.encode(body)), line, options, CHAT))


def test_all_settings_are_covered():
    assert FOLLOWED.keys() | RENEWED.keys() == Model.model_fields.keys()


@pytest.mark.parametrize("field", FOLLOWED)
async def test_a_running_model_calls_as_a_new_one_would(field):
    """Also a line that names an alias: the server does not know that name."""
    pool = BackendPool([], "m")
    for before, after in ((BACKEND, FOLLOWED[field]), (FOLLOWED[field], BACKEND)):
        running, new = awake(pool, of(before)), awake(pool, of(after))
        assert running.follows(Configured(of(after), pool))
        for model in (running, new):
            # A line may have been accepted before its alias was removed, and another change or a restart follow.
            assert [sent(model, {"model": name}) for name in ("m", "other")] == [{"model": "m"}] * 2
        await running.close()
        await new.close()


@pytest.mark.parametrize("field", RENEWED)
async def test_calls_that_differ_need_a_new_model(field):
    pool = BackendPool([], "m")
    running = awake(pool, of({}))
    assert not running.follows(Configured(of(RENEWED[field]), pool))
    await running.close()
