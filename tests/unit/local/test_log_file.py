"""The log file of a process has a bounded size."""

import pytest

from tidemill.local.log_file import LogFile, tail


def test_one_old_file_is_kept(tmp_path):
    """A full file replaces its predecessor."""
    log = LogFile(tmp_path / "x.log", bytes_max=10)
    for line in (b"first line\n", b"second line\n", b"third line\n"):
        log.write(line)
    log.close()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "x.log": b"third line\n",
        "x.log.1": b"second line\n",
    }


def test_a_restart_appends_to_the_file(tmp_path):
    """The size of earlier output counts."""
    for line in (b"first\n", b"second\n"):
        log = LogFile(tmp_path / "x.log", bytes_max=10)
        log.write(line)
        log.close()
    assert (tmp_path / "x.log").read_bytes() == b"first\nsecond\n"


def test_tail(tmp_path):
    """The last lines of any bytes, of a long file, and of a missing one."""
    assert tail(tmp_path / "x.log", 3) == ""
    (tmp_path / "x.log").write_bytes(b"long\n" * 100_000 + b"a\n\xff\nc\n")
    assert tail(tmp_path / "x.log", 3) == "a\n�\nc"


def test_a_log_that_cannot_be_replaced_goes_on(tmp_path):
    """The full file stays in use until the disk takes another."""
    (tmp_path / "logs").mkdir()
    log = LogFile(tmp_path / "logs" / "x.log", bytes_max=10)
    log.write(b"first line\n")
    (tmp_path / "logs").rename(tmp_path / "gone")
    for _ in range(2):
        with pytest.raises(OSError, match="No such file"):
            log.write(b"lost\n")
    (tmp_path / "gone").rename(tmp_path / "logs")
    log.write(b"third line\n")
    log.close()
    assert (tmp_path / "logs" / "x.log").read_bytes() == b"third line\n"
