"""How a stage tells the supervisor that started it that it is ready for work."""

import os

VARIABLE = "TIDEMILL_NOTIFY_FD"


def ready() -> None:
    """Say so once, on the descriptor that the supervisor left open; without a supervisor nothing happens."""
    if descriptor := os.environ.pop(VARIABLE, None):
        with os.fdopen(int(descriptor), "wb") as pipe:
            pipe.write(b"ready\n")
