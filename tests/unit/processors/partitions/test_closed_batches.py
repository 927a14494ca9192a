"""Which batches processors call no more."""

from tidemill.configuration.settings import Settings
from tidemill.kafka.catalog import Catalog
from tidemill.processors.app import Processors
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import Erasure

BATCH = f"batch_{1:032x}"


async def test_a_deleted_batch_is_closed_until_its_deletion_is_forgotten(tmp_path):
    """Then a batch of the same idempotency key may have its id."""
    settings = Settings(kafka="127.0.0.1:1", data=tmp_path)
    processors = Processors(settings, settings.cluster, Catalog(None))
    processors._erased(BATCH, codec.encode(Erasure(project="p", at=1)))
    processors._erased(f"{BATCH}/key", None)
    assert BATCH in processors._closed
    processors._erased(BATCH, None)
    assert BATCH not in processors._closed
