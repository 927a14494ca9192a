"""The log of a process stays small."""

from tidemill.local.log_file import LogFile, tail


def test_keeps_one_old_file(tmp_path):
    """A full file moves away, and what was there before goes."""
    log = LogFile(tmp_path / "x.log", bytes_max=10)
    for line in (b"first line\n", b"second line\n", b"third line\n"):
        log.write(line)
    log.close()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "x.log": b"third line\n",
        "x.log.1": b"second line\n",
    }


def test_goes_on_where_it_was(tmp_path):
    """A process that is started again goes on in the same file, and its size counts."""
    for line in (b"first\n", b"second\n"):
        log = LogFile(tmp_path / "x.log", bytes_max=10)
        log.write(line)
        log.close()
    assert (tmp_path / "x.log").read_bytes() == b"first\nsecond\n"


def test_tail(tmp_path):
    """The last lines, whatever bytes they are made of, also of a file that is long or not there."""
    assert tail(tmp_path / "x.log", 3) == ""
    (tmp_path / "x.log").write_bytes(b"long\n" * 100_000 + b"a\n\xff\nc\n")
    assert tail(tmp_path / "x.log", 3) == "a\n�\nc"
