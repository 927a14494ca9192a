"""The access lists follow from the table of topics."""

import pytest

from tidemill.ingest import app as ingest
from tidemill.ingest.streams import app
from tidemill.processors import app as processors
from tidemill.results import app as results
from tidemill.schemas.log import acls, topics
from tidemill.schemas.log.acls import Operation, Resource
from tidemill.webhooks import app as webhooks

ROWS = acls.rows()


def allowed(role, operation):
    """The topics, by the names or beginnings in the lists, that a role may do this with."""
    return {acl.name for acl in acls.acls([role]) if acl.resource is Resource.TOPIC and acl.operation is operation}


@pytest.mark.parametrize("role", acls.ROLES)
def test_a_role_may_do_what_the_table_says(role):
    """No more, and no less."""
    reads = {row.name for row in topics.TOPICS if role in row.read_by}
    writes = {row.name for row in topics.TOPICS if role in row.written_by}
    assert {name for name in allowed(role, Operation.READ) if not name.endswith(".")} == reads
    assert {name for name in allowed(role, Operation.WRITE) if not name.endswith(".")} == writes
    prefixes = {topics.REQUESTS_PREFIX, topics.EXPRESS_PREFIX}
    assert (prefixes <= allowed(role, Operation.READ)) is (role in topics.requests("m").read_by)
    assert (prefixes <= allowed(role, Operation.WRITE)) is (role in topics.requests("m").written_by)


def test_no_acl_is_wider_than_a_topic_or_all_models():
    """A beginning of a name stands for the topics of all models, and nothing else."""
    wide = {acl.name for acl in acls.acls() if acl.is_prefix}
    assert wide == {topics.REQUESTS_PREFIX, topics.EXPRESS_PREFIX}


def test_ingest_creates_the_topics_of_models_and_no_role_another():
    """With its first line a model may need topics that do not exist yet."""
    creators = {(acl.role, acl.name) for acl in acls.acls() if acl.operation is Operation.CREATE}
    assert creators == {("ingest", topics.REQUESTS_PREFIX), ("ingest", topics.EXPRESS_PREFIX)}


def test_every_writer_and_reader_is_a_role():
    """A misspelt role would have no rights, without an error."""
    for row in ROWS:
        assert {*row.read_by, *row.written_by} <= set(acls.ROLES), row.name


def test_producers_may_write_to_the_intake_alone():
    """Their password opens nothing else."""
    assert [(acl.name, acl.operation) for acl in acls.acls([acls.PRODUCERS])] == [
        (topics.INTAKE.name, Operation.WRITE)
    ]


def test_the_operator_may_describe_every_topic():
    """`tidemill doctor` looks at all of them."""
    seen = {acl.name for acl in acls.acls([acls.OPERATOR]) if acl.operation is not Operation.DESCRIBE_CONFIGS}
    assert len(seen) == len(ROWS)


def test_acls_cover_the_consumer_groups_of_the_stages():
    """A group that has another name would be refused by a broker with access lists."""
    assert acls.GROUPS["ingest"] == (ingest.NAME, app.NAME)
    assert acls.GROUPS["processors"] == (processors.NAME,)
    assert acls.GROUPS["results"] == (results.NAME,)
    assert acls.GROUPS["webhooks"] == (webhooks.NAME,)


def test_every_topic_says_what_its_writers_could_do():
    """docs/reference/access-lists.md shows it to who hands out rights."""
    assert [row.name for row in ROWS if not row.harm] == []
