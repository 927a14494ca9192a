"""The models of a process, without Kafka."""

from types import SimpleNamespace

from tidemill.processors.models import Models, _topics
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.places import Places


class Offsets:
    """A cluster with all topics, which answers once a test has done something."""

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile

    async def partitions(self):
        self.meanwhile()
        return {topic: [0] for name in ("one", "new") for topic in _topics(name)}

    async def first(self, tps):
        return dict.fromkeys(tps, 0)

    async def next(self, tps):
        return dict.fromkeys(tps, 1)

    async def committed(self, group, tps):
        del group, tps
        return {}


async def test_a_model_that_comes_during_a_look_is_looked_for_again():
    """At the next look, and not only with the next regular search half a minute later."""
    models = {"one": None}
    signal = SimpleNamespace(connect=lambda *_, **__: None)
    shared = SimpleNamespace(closed=ClosedBatches())

    def add():
        if "new" not in models:
            models["new"] = None
            made.configure(models)

    places = Places(Offsets(add), "g", 1)
    made = Models(SimpleNamespace(on_partitions_assigned=signal), shared, places)
    made.configure(models)
    places.reset({0})
    await made._look()
    assert not places.has(_topics("new")[0])
    await made._look()
    assert places.has(_topics("new")[0])
