"""The actions in the audit trail: those that grant or revoke access, and those that end or delete something.

Uploads and new batches are not among them: the log records them anyway, with their times and projects.
"""

from enum import StrEnum

KEPT_DAYS = 366


class Action(StrEnum):
    """A requested action. Its record is written first, so an action that fails has a record, too."""

    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    KEY_REFUSE = "key.refuse"
    """A request had an invalid key; at most ten records a minute for one address."""
    SESSION_CREATE = "session.create"
    """A key or a person signed in at the dashboard."""
    SESSION_REFUSE = "session.refuse"
    """A sign-in with OpenID Connect was refused; the record has the reason."""
    SESSION_SWITCH = "session.switch"
    """A session went to another project, the target."""
    SESSION_END = "session.end"
    """A session signed out; from then on no api process accepts it."""
    TOKEN_CREATE = "token.create"  # noqa: S105  a name
    BATCH_CANCEL = "batch.cancel"
    BATCH_DELETE = "batch.delete"
    BATCH_RERUN = "batch.rerun"
    REPLAY_CREATE = "replay.create"
    FILE_DELETE = "file.delete"
    UPLOAD_CANCEL = "upload.cancel"
    CATALOG_SET = "catalog.set"
    """A server or a model was added or changed; the record has the names of its settings."""
    CATALOG_REMOVE = "catalog.remove"
    WEBHOOK_CREATE = "webhook.create"
    WEBHOOK_UPDATE = "webhook.update"
    WEBHOOK_ROTATE = "webhook.rotate"
    """A webhook endpoint got a new signing secret."""
    WEBHOOK_DELETE = "webhook.delete"
    WEBHOOK_DISABLE = "webhook.disable"
    """The service disabled a webhook endpoint that failed for days."""
    DEAD_LETTER_REQUEUE = "dead_letter.requeue"
    """A dead letter is sent to its topic again."""
    SETTINGS_CHANGE = "settings.change"
    """An api process started with changed settings."""
