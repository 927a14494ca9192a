"""Encrypts the signing secrets of webhooks with the keys of the key file, like the keys of batches."""

import base64
from typing import Final

from tidemill.schemas.ids import timely_hex
from tidemill.schemas.webhooks.messages import EndpointRecord, WrappedSecret
from tidemill.sealing.cipher import Damaged
from tidemill.sealing.wrapping import FileWrapper, KeyUnavailable

NO_KEY_FILE: Final = "there is no key file to encrypt secrets with (encryption_key_file)"


class WebhookSecrets:
    """Wraps and unwraps signing secrets."""

    def __init__(self, wrapper: FileWrapper | None) -> None:
        """Keep the wrapper; without one every call raises `KeyUnavailable`."""
        self._wrapper = wrapper

    async def wrap(self, project: str, endpoint_id: str, secret: bytes) -> WrappedSecret:
        """Encrypt a secret of an endpoint.

        Raises:
            KeyUnavailable: There is no key file.
        """
        secret_id = timely_hex()
        name, wrapped = await self._file.wrap(project, _place(endpoint_id, secret_id), secret)
        return WrappedSecret(id=secret_id, wrapped_by=name, wrapped=base64.b64encode(wrapped).decode())

    async def valid(self, record: EndpointRecord, now: float) -> list[bytes]:
        """The secrets of an endpoint that are valid at `now`, in Unix seconds, the current one first.

        Raises:
            KeyUnavailable: The key file does not have the key of one, or the record is damaged.
        """
        return [
            await self._unwrap(record, secret)
            for secret in record.secrets
            if secret.expires_at is None or now < secret.expires_at
        ]

    async def _unwrap(self, record: EndpointRecord, secret: WrappedSecret) -> bytes:
        place = _place(record.endpoint.id, secret.id)
        try:
            wrapped = base64.b64decode(secret.wrapped, validate=True)
            return await self._file.unwrap(record.project, place, secret.wrapped_by, wrapped)
        except (Damaged, ValueError) as error:
            raise KeyUnavailable(f"the secret of {record.endpoint.id} is damaged") from error

    @property
    def _file(self) -> FileWrapper:
        if self._wrapper is None:
            raise KeyUnavailable(NO_KEY_FILE)
        return self._wrapper


def _place(endpoint_id: str, secret_id: str) -> str:
    return f"webhooks/{endpoint_id}/{secret_id}"
