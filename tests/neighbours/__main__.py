"""`make neighbours`: measures one project while another floods the service; exits with 1 beyond a bound."""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from neighbours.floods import FLOODS
from neighbours.measure import faults, measure, show


def main() -> int:
    """Measure once; prints the table last."""
    arguments = argparse.ArgumentParser(prog="neighbours", description=__doc__)
    arguments.add_argument("--seconds", type=float, default=20.0, help="how long each flood is measured")
    arguments.add_argument("--floods", default=",".join(FLOODS), help=f"of {', '.join(FLOODS)}; commas between")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="tidemill-neighbours-") as folder:
        rows = measure(Path(folder) / "data", given.floods.split(","), given.seconds)
    print(show(rows))  # noqa: T201  it is what the run is for
    found = faults(rows)
    print("\n".join(found))  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
