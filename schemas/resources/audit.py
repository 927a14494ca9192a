"""What is written into the audit trail: every action that gives or takes access, or ends or destroys something.

Uploads and new batches are not: the log has them as they are, with their times and projects.
"""

from enum import StrEnum

KEPT_DAYS = 366


class Action(StrEnum):
    """What was asked for. A record is written before it is done, so one that then fails has a record, too."""

    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    KEY_REFUSE = "key.refuse"
    """A key was shown that opens nothing; at most ten a minute of one address."""
    TOKEN_CREATE = "token.create"  # noqa: S105  a name
    BATCH_CANCEL = "batch.cancel"
    BATCH_DELETE = "batch.delete"
    BATCH_RERUN = "batch.rerun"
    REPLAY_CREATE = "replay.create"
    FILE_DELETE = "file.delete"
    UPLOAD_CANCEL = "upload.cancel"
    SETTINGS_CHANGE = "settings.change"
    """An api process started with other settings than the one before it."""
