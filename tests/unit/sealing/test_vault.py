"""Keys that cannot be created or read."""

import pytest

from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import Secret
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import FileWrapper, create_key_file

A = f"batch_{'a' * 32}"


class Away:
    """A log that does not answer."""

    async def send(self, *_, **__):
        """Fail."""
        raise LogUnavailable


@pytest.fixture
def vault(tmp_path):
    """One that cannot send."""
    create_key_file(tmp_path / "keys")
    return Vault(Away(), wrapper=FileWrapper(tmp_path / "keys"), seals=True)


async def test_nothing_stays_of_a_key_that_could_not_be_created(vault):
    """The next attempt starts anew."""
    with pytest.raises(LogUnavailable):
        await vault.sealing_cipher(A, "p")
    assert not vault._creating


@pytest.mark.parametrize("wrapped", ["é", "a", "!", ""])
async def test_a_key_that_is_not_in_base64_is_no_key(vault, wrapped):
    """`é` included, for which the decoder raises another error."""
    name, _ = await vault._wrapper.wrap("p", "place", b"key")
    vault.apply(f"{A}/x", codec.encode(Secret(project="p", at=1, wrapped_by=name, wrapped=wrapped)))
    with pytest.raises(NoKey):
        await vault.cipher(A, "x")
