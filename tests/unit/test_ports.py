"""Test processes that run side by side take no port twice."""

import subprocess
import sys

from support import ports

TAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from support import ports
print(ports._is_locked(int(sys.argv[2])))
"""


def test_a_port_that_was_given_out_is_given_to_no_other_process():
    """As long as the process lives, also before a server listens there."""
    port = ports.free_port()
    command = [sys.executable, "-c", TAKE, str(ports.__file__).rpartition("/support/")[0]]
    for asked, answer in ((port, "False"), (ports._PICK(other_than=port), "True")):
        found = subprocess.run([*command, str(asked)], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == answer
