"""Signs a webhook as Standard Webhooks says, the way that OpenAI's SDKs verify.

The signed text is `<webhook-id>.<webhook-timestamp>.<body>`; the key of HMAC-SHA256 is the secret after `whsec_`,
decoded from base64. One signature for each valid secret, with a space between them.
Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Final

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
_HINT_CHARS: Final = 4


def new_secret() -> bytes:
    """The bytes of a new secret."""
    return secrets.token_bytes(SECRET_BYTES)


def shown(secret: bytes) -> str:
    """A secret in the form that receivers get."""
    return PREFIX + base64.b64encode(secret).decode()


def hint(secret: bytes) -> str:
    """A secret with all but its last characters hidden."""
    return f"{PREFIX}…{shown(secret)[-_HINT_CHARS:]}"


def headers(webhook_id: str, timestamp: int, body: bytes, valid: Iterable[bytes]) -> dict[str, str]:
    """The headers of a call that is made at `timestamp`, in Unix seconds."""
    text = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    signatures = (base64.b64encode(hmac.digest(secret, text, hashlib.sha256)).decode() for secret in valid)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
