"""The totals of the triggers equal counts of the rows."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.api.view.sqlite import Database

PROJECTS = st.sampled_from(["p", "q"])
NAMES = st.sampled_from([f"file-{n}" for n in range(4)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, PROJECTS, st.integers(0, 9)),
        st.tuples(st.just("delete"), NAMES, st.booleans()),
        st.tuples(st.just("release"), NAMES),
        st.tuples(st.just("purge")),
        st.tuples(st.just("batch"), NAMES, PROJECTS, st.booleans(), st.integers(0, 9)),
        st.tuples(st.just("forget"), NAMES),
    ),
    max_size=30,
)


def take(database, step):
    match step:
        case ("put", name, project, size):
            database.write(
                "INSERT INTO files"
                " (id, project, created_at, purpose, key, sha256, body, place, bytes, from_body, owner)"
                " VALUES (?, ?, 1, 'batch', '', '', x'', 1, ?, 0, 0)"
                " ON CONFLICT (id) DO UPDATE SET bytes = excluded.bytes, deleted_at = NULL, held = 0",
                name, project, size,
            )  # fmt: skip
        case ("delete", name, held):
            database.write("UPDATE files SET deleted_at = 2, held = ? WHERE id = ?", held, name)
        case ("release", name):
            database.write("UPDATE files SET held = 0 WHERE id = ?", name)
        case ("purge",):
            database.write("DELETE FROM files WHERE deleted_at IS NOT NULL AND NOT held")
        case ("batch", name, project, over, left):
            database.write(
                "INSERT INTO batches"
                " (id, project, created_at, input_file_id, over, status, body, lines_left, owner, endpoint,"
                " single, stalled, late_at, failures, models, texts)"
                " VALUES (?, ?, 1, '', ?, '', x'', ?, 0, '', 0, 0, 0, 0, '', '') ON CONFLICT (id) DO UPDATE"
                " SET over = excluded.over, lines_left = excluded.lines_left",
                name, project, over, left,
            )  # fmt: skip
        case ("forget", name):
            database.write("DELETE FROM batches WHERE id = ?", name)


def counted(database, kind, table, which, amount):
    rows = database.read(
        f"SELECT project, '{kind}', count(*), sum({amount}) FROM {table} WHERE {which} GROUP BY project"
    )
    return set(rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_triggers_keep_the_totals(tmp_path_factory, steps):
    """After any inserts, updates and deletes."""
    database = Database(tmp_path_factory.mktemp("view"))
    try:
        for step in steps:
            take(database, step)
        totals = {row for row in database.read("SELECT * FROM totals") if row[2] or row[3]}
        assert totals == {
            *counted(database, "files", "files", "deleted_at IS NULL OR held", "bytes"),
            *counted(database, "batches", "batches", "1", "0"),
            *counted(database, "running", "batches", "NOT over", "lines_left"),
        }
    finally:
        database.close()
